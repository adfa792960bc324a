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

from depthdial.core.decision import Site
from depthdial.core.dial import prompt_budget
from depthdial.core.gate import Gate
from depthdial.core.method import Dims, Method
from depthdial.models.dial import offset_of
from depthdial.models.families import family_of
from depthdial.models.own import method_from, plugin_from, trained_with_routers

BUDGET, PROMPT_BUDGET = "DEPTHDIAL_BUDGET", "DEPTHDIAL_PROMPT_BUDGET"
"""Environment variables that override the budget chosen at export, and how prompts are read."""


@dataclass(frozen=True)
class Shape:
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
    dims: Dims
    offset: float
    """Added to each router's logit, for written tokens; `inf` runs everything."""
    prompt_offset: float
    """The same for tokens of prompts."""

    @classmethod
    def of(cls, config: PretrainedConfig, env: Mapping[str, str] | None = None) -> Shape:
        """Of a configuration of one of our types. env: where BUDGET is looked for; None: this process's environment.

        Raises ValueError, with the remedy, for a model that the vLLM model cannot run and a budget it cannot keep.
        """
        family, told = family_of(config), config.to_dict()
        env = os.environ if env is None else env
        other = family.after_attn or family.after_mlp or family.plus_one or family.scales_embeddings
        if other or family.rope_per_kind or told.get(family.activation) not in ("silu", "swish"):
            raise ValueError(
                f"vLLM runs Llama-like layers with SiLU only, not {family.model_type}; use depthdial serve"
            )
        heads, depth = config.num_attention_heads, config.num_hidden_layers
        bias = bool(told.get("attention_bias"))
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=told.get("num_key_value_heads") or heads,
            head_dim=told.get("head_dim") or config.hidden_size // heads,
            eps=config.rms_norm_eps,
            qkv_bias=bias or family.qkv_bias,
            o_bias=bias,
            mlp_bias=bool(told.get("mlp_bias")),
            head_norms=family.head_norms,
            windows=tuple(family.window(config, index) for index in range(depth)),
            max_position=config.max_position_embeddings,
            rope=dict(config.rope_parameters),
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
            method=_checked(method_from(config), family.dims(config), depth),
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

    def routed(self) -> set[int]:
        """The layers that get decisions."""
        return set(self.method.layers(len(self.windows)))


def parts_of(method: Method, layer: int, dims: Dims) -> nn.ModuleDict:
    """Fresh parts of one layer: by unit, then by name."""
    return nn.ModuleDict({unit: nn.ModuleDict(method.parts(Site(layer, unit), dims)) for unit in method.units})


def gate_of(method: Method, parts: nn.ModuleDict, layer: int) -> Gate | None:
    """The layer's decision, where the method describes it as one router for attention and MLP together."""
    by_unit: dict[str, Any] = dict(parts.items())
    gate = method.gate(by_unit, layer)
    return None if gate is None or gate.router is None else gate


def _checked(method: Method, dims: Dims, depth: int) -> Method:
    """ValueError for a method that vLLM's cache or one gate a layer cannot carry."""
    layers = list(method.layers(depth))
    name = type(method).__name__
    if method.kv != "project" and layers:
        raise ValueError(f"{name} leaves holes in the cache (kv={method.kv!r}), which vLLM's has not; call generate")
    if layers and gate_of(method, parts_of(method, layers[0], dims), layers[0]) is None:
        raise ValueError(
            f"{name} has no router that decides a whole layer per token, and vLLM needs one; call generate"
        )
    return method


def _offset(config: PretrainedConfig, env: Mapping[str, str]) -> float:
    """The logit offset for the budget told: by the environment, else by config.json or --hf-overrides."""
    told = env.get(BUDGET)
    try:
        budget = config.budget if told is None else float(told)
    except ValueError:
        raise ValueError(f"{BUDGET}={told!r} is no number up to 1.0") from None
    return (config.offset or 0.0) if budget is None else offset_of(plugin_from(config), budget, "generated")


def _prompt_offset(config: PretrainedConfig, env: Mapping[str, str]) -> float:
    """That of prompts, told in the same ways; untold, they are read by the untouched base where there is one."""
    told, plugin = env.get(PROMPT_BUDGET), plugin_from(config)
    asked: Any = config.prompt_budget if told is None else told
    if asked is None:
        asked = "same" if trained_with_routers(config) else 1.0
    if told is not None and told != "same":
        try:
            asked = float(told)
        except ValueError:
            raise ValueError(f"{PROMPT_BUDGET}={told!r} is no number up to 1.0 and not same") from None
    if (asked := prompt_budget(asked)) == "same":
        return _offset(config, env)
    if trained_with_routers(config):
        raise ValueError(f'this model was trained with its own routers: prompt_budget is "same" there, not {asked}')
    return offset_of(plugin, asked, "text")
