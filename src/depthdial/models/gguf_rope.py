"""How positions turn the heads, from a GGUF file's keys and its tensor of factors to `rope_parameters`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from depthdial.models.gguf_file import Damaged, Unsupported
from depthdial.models.gguf_keys import Keys

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every model with Llama 3's rope has; the factor is the last one of the file's tensor."""


def rope_parameters(keys: Keys, head_dim: int, context: int, factors: Tensor | None) -> dict[str, Any]:
    """`rope_parameters` of a configuration. factors: fp32 [head_dim / 2], by which the frequencies are divided.

    Raises Unsupported for a kind of rope that is not known.
    """
    rope: dict[str, Any] = {"rope_theta": keys.number("rope.freq_base", 10000.0)}
    scaled = _scaling(keys, context)
    if factors is None:
        return {**rope, **scaled}
    if scaled["rope_type"] != "default":
        raise Unsupported(f"it has both rope.scaling.type {scaled['rope_type']} and factors (rope_freqs.weight)")
    if factors.shape != (head_dim // 2,) or not bool((factors > 0).all()):
        raise Damaged(f"rope_freqs.weight holds no {head_dim // 2} factors above 0")
    if bool((factors == 1).all()):
        return {**rope, **scaled}
    llama3 = {"rope_type": "llama3", "factor": float(factors[-1]), **LLAMA3}
    if torch.allclose(factors, _llama3(rope["rope_theta"], head_dim, llama3), rtol=1e-4):
        return {**rope, **llama3}
    every = [float(factor) for factor in factors]  # the kind that takes one for each pair; here at all lengths
    kind = {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0}
    return {**rope, **kind, "short_factor": every, "long_factor": every, "original_max_position_embeddings": context}


def _scaling(keys: Keys, context: int) -> dict[str, Any]:
    arch = f"{keys.arch}.rope"
    kind, said = keys.get(f"{arch}.scaling.type"), keys.get(f"{arch}.scaling.factor")
    old = keys.get(f"{arch}.scale_linear")  # how files of 2023 say it
    said = old if said is None else said
    kind = "linear" if kind is None else kind  # as llama.cpp has it
    if kind not in ("none", "linear", "yarn"):
        raise Unsupported(f"{arch}.scaling.type {kind!r} is not supported; none, linear and yarn are")
    if isinstance(said, bool) or not isinstance(said, int | float | None) or not math.isfinite(said or 0):
        raise Damaged(f"{arch}.scaling.factor is {said!r}, not a number")
    original = keys.get(f"{arch}.scaling.original_context_length")
    defaults = {"beta_fast": 32.0, "beta_slow": 1.0}
    betas = {name: keys.number(f"rope.scaling.yarn_{name}", value) for name, value in defaults.items()}
    mixed, loud = keys.number("rope.scaling.yarn_ext_factor", 1.0), keys.number("rope.scaling.yarn_attn_factor", 1.0)
    if kind == "none" or not said or (kind == "linear" and said == 1):
        return {"rope_type": "default"}
    if said < 1:
        raise Unsupported(f"{arch}.scaling.factor {said} is below 1")
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(said)}
    if mixed != 1:
        raise Unsupported(f"{arch}.scaling.yarn_ext_factor {mixed} is not supported; 1 is")
    yarn: dict[str, Any] = {"rope_type": "yarn", "factor": float(said), **betas}
    yarn["original_max_position_embeddings"] = context if original is None else original
    if loud != 1:
        yarn["attention_factor"] = loud * (0.1 * math.log(said) + 1.0)
    return yarn


def _llama3(base: float, head_dim: int, rope: dict[str, Any]) -> Tensor:
    """The factors [head_dim / 2] of Llama 3's rope: short waves as they are, long ones slowed, a slope between."""
    waves = 2 * math.pi * base ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    slope = ((rope["original_max_position_embeddings"] / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - slope) / rope["factor"] + slope)).float()
