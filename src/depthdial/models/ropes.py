"""The ropes of a model, as the engine takes them.

Frequencies may follow from the length of a text. Hugging Face takes the highest place of a whole pass, and remembers
it; here a text has its own, whatever company it has in a pass: with "dynamic" it is what it holds so far, its prompt at
once, and with "longrope" what it may come to hold, since K of one set of factors means nothing to queries of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from depthdial.kernels.tensors import Rope
from depthdial.models.family import Family

STILL = "none"
"""Of layers without a rope."""
_KINDS = ("default", "linear", "llama3", "yarn", "proportional", "dynamic", "longrope")


def check_ropes(config: Any) -> None:
    """Raise ValueError, naming it, for a kind of rope that is not known."""
    for entry in _entries(config).values():
        if (kind := entry["rope_type"]) not in _KINDS:
            raise ValueError(f"rope type {kind!r} is not known to the engine; it has {', '.join(_KINDS)}")


def context_of(config: Any) -> int:
    """The longest text of a model, in tokens: of a dynamic rope so many times what it was trained at."""
    factors = [entry["factor"] for entry in _entries(config).values() if _grows(entry)]
    return int(config.max_position_embeddings * max(factors, default=1.0))


def ropes_of(rotary: nn.Module, family: Family, config: Any) -> dict[str, Rope]:
    """By kind of layer, or "default" of all."""
    ropes = {}
    for kind, entry in _entries(config).items():
        prefix = "" if kind == "default" else f"{kind}_"
        buffers = dict(rotary.named_buffers())
        # a pass over a long text leaves its own frequencies in the other one
        inv_freq = buffers.get(f"{prefix}original_inv_freq", buffers[f"{prefix}inv_freq"]).to(torch.float32)
        scaling = float(vars(rotary)[f"{prefix}attention_scaling"])
        stretch = _stretch(config, entry, None if kind == "default" else kind, inv_freq)
        ropes[kind] = Rope(inv_freq, scaling, family.exact_rope, stretch)
    depth = config.num_hidden_layers
    if not all(family.turns(config, index) for index in range(depth)):
        like = next(iter(ropes.values()))
        ropes[STILL] = Rope(torch.zeros_like(like.inv_freq), 1.0, like.exact)
    return ropes


def _entries(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    if "rope_type" in rope:
        return {"default": rope}
    return {kind: rope[kind] for kind in sorted(set(config.layer_types))}


def _grows(entry: dict[str, Any]) -> bool:
    return entry["rope_type"] == "dynamic" and not entry.get("alpha")  # which is a fixed stretch (HunYuan)


def _stretch(
    config: PretrainedConfig, entry: dict[str, Any], kind: str | None, short: Tensor
) -> Callable[[Tensor], Tensor] | None:
    if entry["rope_type"] == "longrope" and entry["short_factor"] != entry["long_factor"]:
        trained = entry["original_max_position_embeddings"]
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](config, short.device, seq_len=trained + 1, layer_type=kind)

        def chosen(lengths: Tensor) -> Tensor:
            return torch.where((lengths[1] > trained)[:, None], long, short)

        return chosen
    if _grows(entry):
        trained, factor = config.max_position_embeddings, entry["factor"]
        theta, size = entry["rope_theta"], 2 * len(short)

        def grown(lengths: Tensor) -> Tensor:
            held = lengths[0].clamp(min=trained).double()
            base = theta * (factor * held / trained - (factor - 1)) ** (size / (size - 2))
            powers = torch.arange(0, size, 2, device=short.device, dtype=torch.double) / size
            return torch.where((lengths[0] > trained)[:, None], (base[:, None] ** -powers).float(), short)

        return grown
    return None
