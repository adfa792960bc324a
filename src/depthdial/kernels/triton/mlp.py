"""The MLP of kept rows and the adapter of skipped ones, side by side in one launch each for the way up and down.

Of a layer that every row skips no block reads an MLP weight, and of one that every row keeps none reads the adapter.
"""

# pyright reads a kernel as a plain function: it knows neither launch options nor what compiling makes of arguments
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from depthdial.kernels.tensors import Norm
from depthdial.kernels.triton.linear import load_rows, scaled
from depthdial.kernels.triton.norm import parts_of
from depthdial.kernels.triton.rows import Rows, row_of
from depthdial.kernels.triton.tiles import Tile, dot


class Gated(NamedTuple):
    """A gated network over the rows of one list: the MLP over the kept ones, the adapter over the skipped."""

    rows: Rows
    gate: Tensor
    """T [width, d]"""
    up: Tensor
    down: Tensor
    """T [d, width]"""
    inner: Tensor
    """T [N, width]: act(gate u) * (up u) of listed rows."""
    scale: Tensor | None
    """fp32 [N]: the weight on what is added to the residual stream; None is 1."""
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@triton.jit
def activated(x, gelu):
    """silu of fp32 x, or gelu (tanh form)."""
    cubic = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-tl.where(gelu, cubic, x)))


@triton.jit
def _up(
    x, norm, eps,
    index0, count0, gate0, gate_bias0, up0, up_bias0, out0, work0,
    index1, count1, gate1, gate_bias1, up1, up_bias1, out1, work1,
    DEPTH: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, GELU: tl.constexpr, PLUS_ONE: tl.constexpr,
    TILES_M: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    first = (tl.program_id(0) % TILES_M) * BM
    tile = tl.program_id(0) // TILES_M
    gelu = GELU
    index, count, gate, gate_bias, up, up_bias, out, width, work = (
        index0, count0, gate0, gate_bias0, up0, up_bias0, out0, WIDTH0, work0
    )  # fmt: skip
    if WIDTH1 > 0:  # noqa: SIM102  (decided when compiling)
        if tile >= tl.cdiv(WIDTH0, BN):
            index, count, gate, gate_bias, up, up_bias, out, width, work = (
                index1, count1, gate1, gate_bias1, up1, up_bias1, out1, WIDTH1, work1
            )  # fmt: skip
            tile -= tl.cdiv(WIDTH0, BN)
            gelu = False
    length = tl.load(count)
    if first < length:
        place = first + tl.arange(0, BM)
        valid = place < length
        row = row_of(index, place, length)
        column = tile * BN + tl.arange(0, BN)
        inside = column < width
        gates = tl.zeros((BM, BN), tl.float32)
        ups = tl.zeros((BM, BN), tl.float32)
        squares = tl.zeros((BM,), tl.float32)
        for start in range(0, DEPTH, BK):
            k = start + tl.arange(0, BK)
            a = load_rows(x, row, valid, k, DEPTH, BK)
            if norm is not None:
                wide = a.to(tl.float32)
                squares += tl.sum(wide * wide, 1)
                a = scaled(a, tl.load(norm + k, mask=k < DEPTH, other=0.0)[None, :], PLUS_ONE)
            gates = dot(a, tl.trans(load_rows(gate, column, inside, k, DEPTH, BK)), gates)
            ups = dot(a, tl.trans(load_rows(up, column, inside, k, DEPTH, BK)), ups)
        if norm is not None:
            inverse = tl.rsqrt(squares / DEPTH + eps)[:, None]
            gates *= inverse
            ups *= inverse
        if gate_bias is not None:
            gates += tl.load(gate_bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        if up_bias is not None:
            ups += tl.load(up_bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        # rounded after each step, as Hugging Face does
        kind = out.dtype.element_ty
        opened = activated(gates.to(kind).to(tl.float32), gelu).to(kind).to(tl.float32)
        at = out + row[:, None].to(tl.int64) * width + column[None, :]
        tl.store(at, (opened * ups.to(kind).to(tl.float32)).to(kind), mask=valid[:, None] & inside[None, :])
        if work is not None:
            tl.atomic_add(work, 1)


@triton.jit
def _down(
    x, own,
    index0, count0, inner0, weight0, bias0, scale0, work0,
    index1, count1, inner1, weight1, bias1, scale1, work1,
    COLUMNS: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr,
    TILES_M: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    first = (tl.program_id(0) % TILES_M) * BM
    tile = tl.program_id(0) // TILES_M
    index, count, inner, weight, bias, scale, width, work = (
        index0, count0, inner0, weight0, bias0, scale0, WIDTH0, work0
    )  # fmt: skip
    out, adds = (x, True) if own is None else (own, False)
    if WIDTH1 > 0:  # noqa: SIM102  (decided when compiling)
        if tile >= tl.cdiv(COLUMNS, BN):
            index, count, inner, weight, bias, scale, width, work = (
                index1, count1, inner1, weight1, bias1, scale1, WIDTH1, work1
            )  # fmt: skip
            tile -= tl.cdiv(COLUMNS, BN)
            out, adds = x, True
    length = tl.load(count)
    if first < length:
        place = first + tl.arange(0, BM)
        valid = place < length
        row = row_of(index, place, length)
        column = tile * BN + tl.arange(0, BN)
        present = column < COLUMNS
        sums = tl.zeros((BM, BN), tl.float32)
        for start in range(0, width, BK):
            k = start + tl.arange(0, BK)
            a_at = inner + row[:, None].to(tl.int64) * width + k[None, :]
            w_at = weight + column[:, None].to(tl.int64) * width + k[None, :]
            if WIDTH0 % BK == 0 and WIDTH1 % BK == 0:
                a = tl.load(a_at, mask=valid[:, None], other=0.0)
                w = tl.load(w_at, mask=present[:, None], other=0.0)
            else:
                a = tl.load(a_at, mask=valid[:, None] & (k < width)[None, :], other=0.0)
                w = tl.load(w_at, mask=present[:, None] & (k < width)[None, :], other=0.0)
            sums = dot(a, tl.trans(w), sums)
        if bias is not None:
            sums += tl.load(bias + column, mask=present, other=0.0).to(tl.float32)[None, :]
        at = row[:, None].to(tl.int64) * COLUMNS + column[None, :]
        inside = valid[:, None] & present[None, :]
        kind = out.dtype.element_ty
        update = sums.to(kind).to(tl.float32)
        if scale is not None:
            by = tl.load(scale + row, mask=valid & adds, other=1.0).to(kind).to(tl.float32)
            update = (update * by[:, None]).to(kind).to(tl.float32)
        update += tl.load(x + at, mask=inside & adds, other=0.0).to(tl.float32)
        tl.store(out + at, update.to(kind), mask=inside)
        if work is not None:
            tl.atomic_add(work, 1)


def gate_up(
    x: Tensor,
    mlp: Gated,
    adapter: Gated | None,
    tile: Tile,
    activation: str = "silu",
    norm: Norm | None = None,
    work: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    """inner[row] = act(gate u) * (up u), u = norm(x[row]) (or x[row] without a norm), for the rows of both lists.

    x: T [N, d]. The adapter's activation is silu always. work: int32 [1] each, counts the tiles run for each list.
    """
    widths = mlp.gate.shape[0], 0 if adapter is None else adapter.gate.shape[0]
    tile = tile.fitted(max(widths), x.shape[1])
    tiles_m = triton.cdiv(x.shape[0], tile.rows)
    _up[(tiles_m * sum(triton.cdiv(width, tile.columns) for width in widths),)](
        *(x, *parts_of(norm)),
        *_up_side(mlp, work[0]),
        *_up_side(adapter, work[1]),
        DEPTH=x.shape[1],
        WIDTH0=widths[0],
        WIDTH1=widths[1],
        GELU=activation == "gelu_tanh",
        PLUS_ONE=norm is not None and norm.plus_one,
        TILES_M=tiles_m,
        **dict(zip(("BM", "BN", "BK"), tile[:3], strict=True)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def down(
    x: Tensor,
    mlp: Gated,
    adapter: Gated | None,
    tile: Tile,
    out: Tensor | None = None,
    work: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    """x[row] += scale[row] * (down inner[row]) for the rows of both lists. x: T [N, d], the residual stream.

    out: where the MLP's result goes instead, unscaled and not added, when a norm is to follow it.
    """
    widths = mlp.inner.shape[1], 0 if adapter is None else adapter.inner.shape[1]
    tile = tile.fitted(x.shape[1], widths[0])
    tiles_m = triton.cdiv(x.shape[0], tile.rows)
    _down[(tiles_m * triton.cdiv(x.shape[1], tile.columns) * (1 if adapter is None else 2),)](
        *(x, out),
        *_down_side(mlp, work[0]),
        *_down_side(adapter, work[1]),
        COLUMNS=x.shape[1],
        WIDTH0=widths[0],
        WIDTH1=widths[1],
        TILES_M=tiles_m,
        **dict(zip(("BM", "BN", "BK"), tile[:3], strict=True)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _up_side(part: Gated | None, work: Tensor | None) -> tuple[Tensor | None, ...]:
    if part is None:
        return (None,) * 8
    rows = part.rows
    return rows.index, rows.count, part.gate, part.gate_bias, part.up, part.up_bias, part.inner, work


def _down_side(part: Gated | None, work: Tensor | None) -> tuple[Tensor | None, ...]:
    if part is None:
        return (None,) * 7
    return part.rows.index, part.rows.count, part.inner, part.down, part.down_bias, part.scale, work


@triton.jit
def _multiply(gates, ups, elements, GELU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gates + at, mask=at < elements, other=0.0)
    up = tl.load(ups + at, mask=at < elements, other=0.0)
    opened = activated(gate.to(tl.float32), GELU).to(gate.dtype).to(tl.float32)
    tl.store(gates + at, (opened * up.to(tl.float32)).to(gate.dtype), mask=at < elements)


def multiply_activated(gates: Tensor, ups: Tensor, activation: str = "silu") -> None:
    """gates = act(gates) * ups, in place. gates, ups: T, contiguous, of one shape."""
    block = min(4096, triton.next_power_of_2(gates.numel()))
    grid = (triton.cdiv(gates.numel(), block),)
    _multiply[grid](gates, ups, gates.numel(), GELU=activation == "gelu_tanh", BLOCK=block, num_warps=8)
