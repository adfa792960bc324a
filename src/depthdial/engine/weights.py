"""Weights in the model's dtype or in int8, for the torch runner; and a spine whose matrices are int8.

The native kernels multiply int8 by int8; here activations stay as they are: passes of many tokens are bound by
arithmetic, not by the bytes of weights.
"""

from __future__ import annotations

import ctypes
import gc
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.kernels.pack import int8_pack
from depthdial.kernels.tensors import Int8, LayerTensors, Linear, ModelTensors, Weight

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def multiply(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x: T [N, in] -> T [N, out]."""
    if not isinstance(weight, Int8):
        return F.linear(x, weight, bias)
    y = F.linear(x, weight.values.to(x.dtype)) * weight.scale.to(x.dtype)
    return y if bias is None else y + bias


def look_up(ids: Tensor, table: Weight, dtype: torch.dtype) -> Tensor:
    """ids: int64 [N] -> T [N, d]."""
    if not isinstance(table, Int8):
        return F.embedding(ids, table)
    return (table.values[ids] * table.scale[ids, None]).to(dtype)


def first_rows(weight: Weight, count: int | None) -> Weight:
    """The first rows of a weight; None: all."""
    return Int8(*(part[:count] for part in weight)) if isinstance(weight, Int8) else weight[:count]


def size_of(weight: Weight) -> int:
    """Bytes of a weight."""
    parts = weight if isinstance(weight, Int8) else (weight,)
    return sum(part.numel() * part.element_size() for part in parts)


def int8_spine(spine: ModelTensors, release: bool = False) -> ModelTensors:
    """The spine with every matrix in int8, one scale a row; norms and biases stay.

    release: give each original's memory back as soon as it is packed; the model itself can then run no longer.
    """
    if any(block.experts is not None for block in spine.layers):
        raise ValueError("a mixture of experts runs in the dtype it was loaded in")
    blocks, known = [], {}
    for block in spine.layers:
        for name, linear in matrices(block).items():
            if (key := id(linear.weight)) not in known:  # further visits of a block share its tensors
                known[key] = _packed(linear, release)
            block = block._replace(**{name: known[key]})
        blocks.append(block)
    embed = _pack(spine.embed)
    head = embed if spine.head is spine.embed else _pack(spine.head)
    if release:
        for weight in (spine.embed, spine.head):
            _release(weight)
        _give_back()
    return spine._replace(layers=tuple(blocks), embed=embed, head=head)


def _packed(linear: Linear, release: bool) -> Linear:
    packed = Linear(_pack(linear.weight), linear.bias)
    if release:
        _release(linear.weight)
    return packed


def _pack(weight: Weight) -> Int8:
    return weight if isinstance(weight, Int8) else int8_pack(weight.detach())


def _release(weight: Weight) -> None:
    if not isinstance(weight, Int8):
        weight.data = weight.data.new_empty(0)


def _give_back() -> None:
    """Return freed pages to the system: glibc keeps those between blocks in use, here as many as the model had."""
    if sys.platform == "linux":
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def matrices(block: LayerTensors) -> dict[str, Linear]:
    """The matrices of a layer by name."""
    return {name: linear for name in MATRICES if (linear := getattr(block, name)) is not None}
