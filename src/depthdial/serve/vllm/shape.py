"""What the vLLM model must know of an exported model, read off its configuration. Nothing of vLLM is imported here, so
that `depthdial export` can refuse what vLLM could not run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from depthdial.core.dial import prompt_budget
from depthdial.core.method import Dims, Method
from depthdial.core.program import Program
from depthdial.models.dial import offset_of, read_offset_of
from depthdial.models.families import family_of
from depthdial.models.own import method_from, plugin_from, trained_with_routers

BUDGET, PROMPT_BUDGET = "DEPTHDIAL_BUDGET", "DEPTHDIAL_PROMPT_BUDGET"
"""Environment variables that override the budget chosen at export, and how prompts are read."""
KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose layers the vLLM model has."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-like layer, and what routes it."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    head_norms: bool
    windows: tuple[int | None, ...]
    """Per layer: how many tokens a token attends to, itself included; None is all."""
    max_position: int
    rope: dict[str, Any]
    vocabulary: int
    tied: bool
    method: Method
    program: Program
    dims: Dims
    offset: float
    """Added to each router's logit, for written tokens; `inf` runs everything."""
    prompt_offset: float
    """The same for tokens of prompts."""

    @classmethod
    def of(cls, config: PretrainedConfig, env: Mapping[str, str] | None = None) -> ModelShape:
        """Of a configuration of one of our types. env: where BUDGET is looked for; None: this process's environment.

        Raises ValueError, with the remedy, for a model that the vLLM model cannot run and a budget it cannot keep.
        """
        family, fields = family_of(config), config.to_dict()
        kind = family.model_type
        env = os.environ if env is None else env
        if kind not in KINDS or fields["hidden_act"] not in ("silu", "swish"):
            raise ValueError(f"vLLM runs layers of {', '.join(KINDS)} with SiLU only, not {kind}; use depthdial serve")
        heads, depth, method = config.num_attention_heads, config.num_hidden_layers, method_from(config)
        bias = bool(fields.get("attention_bias"))
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=fields.get("num_key_value_heads") or heads,
            head_dim=fields.get("head_dim") or config.hidden_size // heads,
            eps=config.rms_norm_eps,
            qkv_bias=bias or kind == "qwen2",
            o_bias=bias,
            mlp_bias=bool(fields.get("mlp_bias")),
            head_norms=kind == "qwen3",
            windows=tuple(family.window(config, index) for index in range(depth)),
            max_position=config.max_position_embeddings,
            rope=dict(config.rope_parameters),
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
            method=method,
            program=_vllm_program(method, depth),
            dims=family.dims(config),
            offset=_offset(config, env),
            prompt_offset=_prompt_offset(config, env),
        )

    def split(self, ranks: int) -> None:
        """ValueError where the heads cannot be divided over this many ranks of tensor parallelism."""
        if self.heads % ranks or self.kv_heads % ranks or self.intermediate % ranks:
            raise ValueError(
                f"{self.heads} heads, {self.kv_heads} of K and V, cannot be divided over {ranks} ranks; "
                f"give --tensor-parallel-size a divisor of {math.gcd(self.heads, self.kv_heads, self.intermediate)}"
            )


def layer_parts(shape: ModelShape, layer: int) -> nn.ModuleDict:
    """Fresh parts of one layer, by the units with a decision, then by name."""
    steps = [step for step in shape.program.steps if step.block == layer and step.routed != "no"]
    return nn.ModuleDict({step.unit: nn.ModuleDict(shape.method.parts(step, shape.dims)) for step in steps})


def _vllm_program(method: Method, depth: int) -> Program:
    """The method's program. ValueError where vLLM's cache, or its passes layer by layer, cannot carry it."""
    program, name = method.program(depth), type(method).__name__
    if program.gaps and program.skips:
        raise ValueError(f"{name} leaves holes in the cache, which vLLM's has not; use depthdial serve")
    if (
        not program.plain
        or not method.reads <= {"x", "position", "id", "key"}
        or type(method).delta is not Method.delta
    ):
        raise ValueError(f"{name} needs more than the base's layers one after the other; use depthdial serve")
    return program


def _offset(config: PretrainedConfig, env: Mapping[str, str]) -> float:
    """The logit offset for the budget: of the environment, else of config.json or --hf-overrides."""
    text = env.get(BUDGET)
    try:
        budget = config.budget if text is None else float(text)
    except ValueError:
        raise ValueError(f"{BUDGET}={text!r} is no number up to 1.0") from None
    return (config.offset or 0.0) if budget is None else offset_of(plugin_from(config), budget, "generated")


def _prompt_offset(config: PretrainedConfig, env: Mapping[str, str]) -> float:
    """That of prompts, from the same places; by default they are read by the untouched base where there is one."""
    text, plugin = env.get(PROMPT_BUDGET), plugin_from(config)
    budget: Any = config.prompt_budget if text is None else text
    if budget is None:
        budget = "same" if trained_with_routers(config) else 1.0
    if text is not None and text != "same":
        try:
            budget = float(text)
        except ValueError:
            raise ValueError(f"{PROMPT_BUDGET}={text!r} is no number up to 1.0 and not same") from None
    if (budget := prompt_budget(budget)) == "same":
        return _offset(config, env)
    if trained_with_routers(config):
        raise ValueError(f'this model was trained with its own routers: prompt_budget is "same" there, not {budget}')
    return read_offset_of(plugin, budget)
