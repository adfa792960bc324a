"""Make a recursive model of a base (Relaxed Recursive Transformers): fewer blocks, each visited several times, and what
each visit differs from its block by as low-rank changes.

The scales of norms are multiplied into the linear maps behind them first, so that the norms of all layers are one and
the same: what is left between a layer and its block are differences of linear maps, and with changes of full rank the
model is the base, to float precision. This file is *not* about how it is run (`methods.recursive`) or trained.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from depthdial.core.layers import LoRA
from depthdial.methods import Recursive, name_of
from depthdial.methods.recursive import PROJ
from depthdial.models.convert import layers_of
from depthdial.models.converted import converted_of
from depthdial.models.families import OWN, family_of
from depthdial.models.family import ATTN, MLP, norms_of
from depthdial.models.own import own_types

INITS = ("stepwise", "average", "lower")
KINDS = ("llama", "mistral")
"""Families in whose layers changes of linear maps can make up for all that differs."""
_AFTER = {ATTN: ("q_proj", "k_proj", "v_proj"), MLP: ("gate_proj", "up_proj")}
"""The linear maps behind the norm before attention, and before the MLP."""


class Retrofitted(NamedTuple):
    """A recursive model and how near it is to its base."""

    model: PreTrainedModel
    covered: float
    """Share of the squared difference between all layers and their blocks that the changes make up for."""


def check(config: PretrainedConfig, loops: int, init: str, rank: int) -> None:
    """Raise ValueError, with the remedy, for what cannot be made of a base of this configuration."""
    method = Recursive(loops=loops, rank=rank)
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}; choose one of {', '.join(INITS)}")
    kind = config.model_type
    if kind.startswith(OWN):
        raise ValueError(
            f"a model of type {kind!r} has a method of its own already; give the base that it was made from"
        )
    family_of(config)
    biases = getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    if kind not in KINDS or biases:
        raise ValueError(
            f"models of type {kind!r} cannot be made recursive (biases, or norms that no linear map follows); "
            f"known, without biases: {', '.join(KINDS)}"
        )
    depth, kinds = config.num_hidden_layers, getattr(config, "layer_types", None)
    if depth % loops:
        divide = [str(n) for n in range(2, depth + 1) if not depth % n]
        raise ValueError(f"{loops} loops do not divide {depth} layers; choose one of {', '.join(divide)}")
    if kinds and any(kinds[layer] != kinds[layer % (depth // loops)] for layer in range(depth)):
        raise ValueError(f"layers of several kinds (config.layer_types) would share a block in {loops} loops")
    full = max(min(size) for size in family_of(config).dims(config).linears.values())
    if method.rank > full:
        raise ValueError(f"a LoRA of rank {rank} is more than its maps have; give 0 (none) to {full} (exact)")


def stands_for(depth: int, loops: int, init: str) -> list[list[int]]:
    """The layers that each of the depth / loops blocks is the mean of, by block."""
    blocks = depth // loops
    if init == "average":
        return [list(range(block, depth, blocks)) for block in range(blocks)]
    if init == "lower" or blocks == 1:
        return [[block] for block in range(blocks)]
    return [[round(block * (depth - 1) / (blocks - 1))] for block in range(blocks)]


@torch.no_grad()
def retrofit(model: PreTrainedModel, loops: int, init: str, rank: int) -> Retrofitted:
    """A recursive model, in the base's dtype, with changes in fp32; the base stays as it is.

    init: a block is one layer, evenly spread with the first and the last among them ("stepwise"), or of the first ones
    ("lower"), or the mean of the layers that it stands for ("average"). rank: of the changes; 0 is none, and what the
    widest map has is exact. Raises ValueError as `check`.
    """
    check(model.config, loops, init, rank)
    layers = layers_of(model)
    blocks, method = len(layers) // loops, Recursive(loops=loops, rank=rank)
    made = _fresh(model, method, blocks)
    made.load_state_dict({n: t for n, t in model.state_dict().items() if ".layers." not in n}, strict=False)
    for block, mean_of in zip(layers_of(made), stands_for(len(layers), loops, init), strict=True):
        each = [_folded(layers[layer]) for layer in mean_of]
        state = {name: torch.stack([weights[name] for weights in each]).mean(0) for name in each[0]}
        block.load_state_dict(state, strict=False)
    converted = converted_of(made)
    left = whole = 0.0
    for s, step in enumerate(converted.program.steps):
        parts: Any = converted.units[s].parts if rank else {}
        block = layers_of(made)[step.block].state_dict()
        for name, weight in _folded(layers[s]).items():
            if weight.ndim == 2:
                lacks = weight - block[name].float()
                whole += float(lacks.square().sum())
                left += float(
                    _set(parts[name.split(".")[-2].removesuffix(PROJ)], lacks) if rank else lacks.square().sum()
                )
    made.generation_config = model.generation_config
    return Retrofitted(made.eval(), 1 - left / whole if whole else 1.0)


def _fresh(model: PreTrainedModel, method: Recursive, blocks: int) -> PreTrainedModel:
    """A random model of the base's sizes with so many blocks, of a type of our own."""
    own: Any
    own, kind = own_types(model.config.model_type)
    fields = {
        name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "architectures")
    }
    if fields.get("layer_types"):
        fields["layer_types"] = fields["layer_types"][:blocks]
    fields["num_hidden_layers"] = blocks
    made: Any = kind(own(**fields, method={"name": name_of(method), **dataclasses.asdict(method)}))
    for name, tensor in made.named_parameters():
        if ".parts." not in name:
            tensor.data = tensor.data.to(model.dtype)
    return made


def _folded(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's weights, fp32, by name: norms of ones, their scales in the maps behind them."""
    state = {name: weight.float() for name, weight in layer.state_dict().items() if not name.startswith("parts.")}
    norms = norms_of(layer)
    for unit, norm in ((ATTN, norms.before_attn), (MLP, norms.before_mlp)):
        scale = state[f"{norm}.weight"]
        for name in _AFTER[unit]:
            linear = f"{unit}.{name}.weight"
            state[linear] = state[linear] * scale
        state[f"{norm}.weight"] = torch.ones_like(scale)
    return state


def _set(part: LoRA, lacks: Tensor) -> Tensor:
    """Let a change be the nearest of its rank to `lacks`, [out, in]; what it leaves, squared. Of nothing it stays as it
    is: its `down` random, so that it may learn."""
    if lacks.any():
        u, s, v = torch.linalg.svd(lacks, full_matrices=False)
        rank = part.down.shape[0]
        part.up.copy_(u[:, :rank] * s[:rank])
        part.down.copy_(v[:rank])
        return s[rank:].square().sum()
    return lacks.sum()
