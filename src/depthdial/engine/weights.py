"""Weights in the model's dtype, in int8 or in blocks, for the torch runner; and a spine whose matrices are narrow.

The native kernels multiply narrow weights by activations in int8; here those stay as they are: passes of many tokens
are bound by arithmetic, not by the bytes of weights.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.kernels.blocks import COLS, Blocks, quantise, take
from depthdial.kernels.cpu.build import supported
from depthdial.kernels.pack import int8_pack
from depthdial.kernels.tensors import Int8, LayerTensors, Linear, ModelTensors, Weight

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
TOGETHER = (("k", "v"), ("gate", "up"))
"""Matrices that take the same tokens, packed once."""

Pack = Callable[[Tensor, bool], Weight]
"""Makes a matrix narrow, or leaves it; True: it is the embedding or the head."""


def multiply(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x: T [N, in] -> T [N, out]."""
    if isinstance(weight, Blocks):
        weight = weight.to(x.dtype)
    if not isinstance(weight, Int8):
        return F.linear(x, weight, bias)
    y = F.linear(x, weight.values.to(x.dtype)) * weight.scale.to(x.dtype)
    return y if bias is None else y + bias


def look_up(ids: Tensor, table: Weight, dtype: torch.dtype) -> Tensor:
    """ids: int64 [N] -> T [N, d]."""
    if isinstance(table, Blocks):
        return take(table, ids).to(dtype)
    if not isinstance(table, Int8):
        return F.embedding(ids, table)
    return (table.values[ids] * table.scale[ids, None]).to(dtype)


def first_rows(weight: Weight, count: int | None) -> Weight:
    """The first rows of a weight; None: all."""
    if isinstance(weight, Blocks):
        return weight if count is None else weight.to(torch.float32)[:count]
    return Int8(*(part[:count] for part in weight)) if isinstance(weight, Int8) else weight[:count]


def size_of(weight: Weight) -> int:
    """Bytes of a weight."""
    if isinstance(weight, Blocks):
        return weight.codes.nbytes + weight.scales.nbytes
    parts = weight if isinstance(weight, Int8) else (weight,)
    return sum(part.numel() * part.element_size() for part in parts)


def int8(weight: Tensor, _outside: bool) -> Weight:
    """8 bits: a scale for each row where AMX multiplies them, and where blocks do not fit; else one for 32 weights,
    whose panels take several tokens at a time more than twice as fast."""
    rows = supported()[0] == "amx" or weight.shape[1] % COLS
    return int8_pack(weight.detach()) if rows else quantise(weight, "Q8_0")


def int4(weight: Tensor, outside: bool) -> Weight:
    """Scale and minimum for 32 weights; embedding and head in 8 bits."""
    return quantise(weight, "Q8_0" if outside else "Q4_1")


def int4_head(weight: Tensor, _outside: bool) -> Weight:
    """As `int4`, embedding and head, too."""
    return quantise(weight, "Q4_1")


def narrow_spine(spine: ModelTensors, pack: Pack, release: bool = False) -> ModelTensors:
    """The spine with every matrix as `pack` has it; norms and biases stay.

    release: give each original's memory back as soon as it is packed; the model itself can then run no longer.
    """
    if any(block.experts is not None for block in spine.layers):
        raise ValueError("a mixture of experts runs in the dtype it was loaded in")
    known: dict[int, Weight] = {}

    def narrow(weight: Weight, outside: bool = False) -> Weight:
        if not isinstance(weight, Tensor):
            return weight
        if (key := id(weight)) not in known:  # further visits of a block share its tensors, and so may the head
            known[key] = packed = pack(weight, outside)
            if release and packed is not weight:
                _release(weight)
        return known[key]

    embed, head = narrow(spine.embed, True), narrow(spine.head, True)
    blocks = []
    for block in spine.layers:
        packed = {name: Linear(narrow(linear.weight), linear.bias) for name, linear in matrices(block).items()}
        for pair in TOGETHER:
            widen_mixed(packed, pair, spine.norm.weight.dtype)
        blocks.append(block._replace(**packed))
    if release:
        _give_back()
    return spine._replace(layers=tuple(blocks), embed=embed, head=head)


def widen_mixed(of: dict[str, Linear], names: tuple[str, ...], dtype: torch.dtype) -> None:
    """Of matrices that take the same packed tokens either all are in blocks or none: a file may have one in F16."""
    there = [name for name in names if name in of]
    if len({isinstance(of[name].weight, Blocks) for name in there}) > 1:
        for name in there:
            if isinstance(weight := of[name].weight, Blocks):
                of[name] = of[name]._replace(weight=weight.to(dtype))


def _release(weight: Tensor) -> None:
    weight.data = weight.data.new_empty(0)


def _give_back() -> None:
    """Return freed pages to the system: glibc keeps those between blocks in use, here as many as the model had."""
    if sys.platform == "linux":
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def bytes_each(spine: ModelTensors) -> tuple[float, float]:
    """Bytes of a weight, scales included: of the layers' matrices, and of the embedding and the head."""
    layers = [linear.weight for block in spine.layers for linear in matrices(block).values()]

    def mean(weights: list[Weight]) -> float:
        return sum(map(size_of, weights)) / sum(count_of(weight) for weight in weights)

    return mean(layers), mean([spine.embed, spine.head])


def count_of(weight: Weight) -> int:
    """Numbers of a matrix."""
    if isinstance(weight, Blocks):
        return weight.rows * weight.cols
    return (weight.values if isinstance(weight, Int8) else weight).numel()


def matrices(block: LayerTensors) -> dict[str, Linear]:
    """The matrices of a layer by name."""
    return {name: linear for name in MATRICES if (linear := getattr(block, name)) is not None}
