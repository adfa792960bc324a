"""Linear maps of listed rows. A block whose tile lies beyond the list returns before it reads a weight.

Up to three weights with one input share a launch (q, k and v; or k, v and a router's first map). Where rows are few the
norm before the map is folded in: x * weight goes into the product, and the row's 1 / rms is applied to what comes out.
"""

# pyright reads a kernel as a plain function: it knows neither launch options nor what compiling makes of arguments
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from depthdial.kernels.tensors import Norm
from depthdial.kernels.triton.norm import parts_of
from depthdial.kernels.triton.rows import Rows, row_of
from depthdial.kernels.triton.tiles import Tile, dot


class Map(NamedTuple):
    """One weight of a launch."""

    weight: Tensor
    """T [columns, depth]."""
    bias: Tensor | None
    """[columns]."""
    out: Tensor
    """[N, columns], T or float32."""


@triton.jit
def scaled(x, weight, PLUS_ONE: tl.constexpr):
    """x times a norm's weight, in x's dtype: the norm without its 1 / rms."""
    factor = weight.to(tl.float32)
    if PLUS_ONE:
        factor = 1.0 + factor
    return (x.to(tl.float32) * factor).to(x.dtype)


@triton.jit
def load_rows(x, row, valid, k, DEPTH: tl.constexpr, BK: tl.constexpr):
    """x[row, k]: [BM, BK]; a mask over k only where the last step is ragged (it would keep loads from being wide)."""
    at = x + row[:, None].to(tl.int64) * DEPTH + k[None, :]
    if DEPTH % BK == 0:
        tile = tl.load(at, mask=valid[:, None], other=0.0)
    else:
        tile = tl.load(at, mask=valid[:, None] & (k < DEPTH)[None, :], other=0.0)
    return tile


@triton.jit
def _linear(
    x, norm, eps, index, count, w0, b0, out0, w1, b1, out1, w2, b2, out2, residual, softcap, work,
    DEPTH: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, PLUS_ONE: tl.constexpr,
    TILES_M: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # the row tile varies fastest: blocks that share a weight tile run side by side
    first = (tl.program_id(0) % TILES_M) * BM
    tile = tl.program_id(0) // TILES_M
    length = tl.load(count)
    if first < length:
        place = first + tl.arange(0, BM)
        valid = place < length
        row = row_of(index, place, length)
        # one loop over whichever weight it is: a loop for each would take shared memory of its own
        T0: tl.constexpr = tl.cdiv(N0, BN)
        T1: tl.constexpr = tl.cdiv(N1, BN)
        weight, bias, out, columns = w0, b0, out0, N0
        if N1 > 0:
            if tile >= T0 + T1:
                weight, bias, out, columns, tile = w2, b2, out2, N2, tile - T0 - T1
            elif tile >= T0:
                weight, bias, out, columns, tile = w1, b1, out1, N1, tile - T0
        column = tile * BN + tl.arange(0, BN)
        present = column < columns
        sums = tl.zeros((BM, BN), tl.float32)
        squares = tl.zeros((BM,), tl.float32)
        for start in range(0, DEPTH, BK):
            k = start + tl.arange(0, BK)
            a = load_rows(x, row, valid, k, DEPTH, BK)
            if norm is not None:
                wide = a.to(tl.float32)
                squares += tl.sum(wide * wide, 1)
                a = scaled(a, tl.load(norm + k, mask=k < DEPTH, other=0.0)[None, :], PLUS_ONE)
            w = load_rows(weight, column, present, k, DEPTH, BK)
            sums = dot(a, tl.trans(w), sums)
        if norm is not None:
            sums *= tl.rsqrt(squares / DEPTH + eps)[:, None]
        if bias is not None:
            sums += tl.load(bias + column, mask=present, other=0.0).to(tl.float32)[None, :]
        at = row[:, None].to(tl.int64) * columns + column[None, :]
        inside = valid[:, None] & present[None, :]
        if softcap is not None:
            sums = (1.0 - 2.0 / (tl.exp(2.0 * sums / softcap) + 1.0)) * softcap
        if residual is not None:
            update = sums.to(residual.dtype.element_ty).to(tl.float32)
            sums = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) + update
        tl.store(out + at, sums.to(out.dtype.element_ty), mask=inside)
        if work is not None:
            tl.atomic_add(work, 1)


def linear(
    x: Tensor,
    maps: tuple[Map, ...],
    rows: Rows,
    tile: Tile,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    softcap: float | None = None,
    work: Tensor | None = None,
) -> None:
    """out[row] = x[row] @ weight.T + bias for listed rows of x, T [N, depth], and each of one to three maps.

    norm: applied to x first (folded in, rounded once less than on its own). residual: T [N, columns], added to a single
    map's rounded result; it may be `out`. work: int32 [1], counts the tiles that were run.
    """
    assert 1 <= len(maps) <= 3 and (residual is None or len(maps) == 1)
    assert len({(m.bias is None, m.out.dtype) for m in maps}) == 1, "maps of one launch all have a bias, or none has"
    depth = x.shape[1]
    widths = [m.weight.shape[0] for m in maps] + [0] * (3 - len(maps))
    tile = tile.fitted(max(widths), depth)
    tiles_m = triton.cdiv(x.shape[0], tile.rows)
    slots = [(m.weight, m.bias, m.out) for m in maps]
    slots += [slots[0] if len(maps) == 2 else (None, None, None)] * (3 - len(maps))
    grid = (tiles_m * sum(triton.cdiv(width, tile.columns) for width in widths),)
    _linear[grid](
        *(x, *parts_of(norm), rows.index, rows.count),
        *(part for slot in slots for part in slot),
        *(residual, softcap, work),
        DEPTH=depth,
        **dict(zip(("N0", "N1", "N2"), widths, strict=True)),
        PLUS_ONE=norm is not None and norm.plus_one,
        TILES_M=tiles_m,
        **dict(zip(("BM", "BN", "BK"), tile[:3], strict=True)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
