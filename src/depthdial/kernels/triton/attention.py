"""Decode attention: each listed row over the pages of its own sequence, the heads of a group together.

The pages of a row are parted among a fixed number of programs; those without a page return at once, and the one that
comes last joins the parts. `over_pages` is the inner loop that prefill shares.
"""

# pyright reads a kernel as a plain function: it knows neither launch options nor what compiling makes of arguments
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from depthdial.kernels.tensors import PAGE, Norm
from depthdial.kernels.triton.norm import parts_of
from depthdial.kernels.triton.rope import turned
from depthdial.kernels.triton.route import Place
from depthdial.kernels.triton.rows import Rows, row_of
from depthdial.kernels.triton.tiles import SMALLEST, dot

MOST_SPLITS = 32


class Queries(NamedTuple):
    """q as it leaves its projection, and what turns it into queries."""

    q: Tensor
    """T [N, heads * hd]"""
    norm: Norm | None
    cos: Tensor
    """T [N, hd / 2]"""
    sin: Tensor
    scale: float
    """On q . k."""
    window: int | None


class Parts(NamedTuple):
    """Room for the parts of rows that several programs attend for."""

    sums: Tensor
    """fp32 [N, heads, splits, hd]"""
    top: Tensor
    """fp32 [N, heads, splits]: the largest logit of the part, in units of log 2."""
    total: Tensor
    """fp32 [N, heads, splits]: the sum of its weights."""
    arrived: Tensor
    """int32 [N, kv_heads], 0 before and after each launch."""

    @classmethod
    def empty(cls, rows: int, heads: int, kv_heads: int, head_dim: int, splits: int, device: torch.device) -> Parts:
        shape = (rows, heads, splits)
        return cls(
            torch.zeros(*shape, head_dim, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(rows, kv_heads, dtype=torch.int32, device=device),
        )


def splits_for(rows: int, kv_heads: int, pages: int, programs: int = 264) -> int:
    """How many programs share a row's pages, so that there are about `programs` (two for each multiprocessor)."""
    wanted = triton.next_power_of_2(triton.cdiv(programs, rows * kv_heads))
    return max(1, min(wanted, MOST_SPLITS, triton.next_power_of_2(pages)))


@triton.jit
def over_pages(
    first, second, position, head, k_cache, v_cache, table, begin, end, scale, window,
    KV_HEADS: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, HALF_BLOCK: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    """Queries (halves first and second, [ROWS, HALF_BLOCK]) at `position` [ROWS] over the pages begin..end-1 of a
    sequence whose row of the page table starts at `table`: fp32 sums [ROWS, HEAD_BLOCK], top and total [ROWS].
    scale: with log2(e) in it."""
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, HEAD_BLOCK), tl.float32)
    latest = tl.max(position, 0)
    token = tl.arange(0, PAGE)
    half = tl.arange(0, HALF_BLOCK)
    wide = tl.arange(0, HEAD_BLOCK)
    for page in range(begin, end):
        place = (tl.load(table + page).to(tl.int64) * KV_HEADS + head) * PAGE * 2 * HALF
        seen = page * PAGE + token
        written = (seen <= latest)[:, None]  # beyond it a page holds whatever was there before
        k = k_cache + place + token[:, None] * 2 * HALF + half[None, :]
        k1 = tl.load(k, mask=written & (half < HALF)[None, :], other=0.0)
        k2 = tl.load(k + HALF, mask=written & (half < HALF)[None, :], other=0.0)
        logit = dot(first, tl.trans(k1), tl.zeros((ROWS, PAGE), tl.float32))
        logit = dot(second, tl.trans(k2), logit) * scale
        visible = seen[None, :] <= position[:, None]
        if window is not None:
            visible &= seen[None, :] > position[:, None] - window
        logit = tl.where(visible, logit, float("-inf"))
        higher = tl.maximum(top, tl.max(logit, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees nothing of this page
        weight = tl.exp2(logit - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weight, 1)
        at = v_cache + place + token[:, None] * 2 * HALF + wide[None, :]
        v = tl.load(at, mask=written & (wide < 2 * HALF)[None, :], other=0.0)
        sums = dot(weight.to(v.dtype), v, sums * shrink[:, None])
        top = higher
    return sums, top, total


@triton.jit
def _decode(
    q, q_norm, q_eps, cos, sin, k_cache, v_cache, page_table, sequences, positions, pages_per_sequence,
    index, count, scale, window, out, part_sums, part_top, part_total, arrived, work,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr, PLUS_ONE: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, HALF_BLOCK: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0) % SPLITS
    head = (tl.program_id(0) // SPLITS) % KV_HEADS
    place = tl.program_id(0) // (SPLITS * KV_HEADS)
    length = tl.load(count)
    if place < length:
        row = row_of(index, place, length)
        position = tl.load(positions + row)
        start = 0
        if window is not None:
            start = tl.maximum(position + 1 - window, 0) // PAGE
        pages = position // PAGE + 1 - start
        each = tl.cdiv(pages, SPLITS)
        begin = start + split * each
        end = tl.minimum(begin + each, start + pages)
        if begin < end:
            member = tl.arange(0, ROWS)
            safe = head * GROUP + tl.where(member < GROUP, member, 0)
            half = tl.arange(0, HALF_BLOCK)
            c = tl.load(cos + row * HALF + half, mask=half < HALF, other=0.0)[None, :]
            s = tl.load(sin + row * HALF + half, mask=half < HALF, other=0.0)[None, :]
            pointer = q + (row.to(tl.int64) * KV_HEADS * GROUP + safe) * 2 * HALF
            first, second = turned(pointer, q_norm, q_eps, c, s, HALF, HALF_BLOCK, PLUS_ONE)
            sums, top, total = over_pages(
                first, second, position + tl.zeros((ROWS,), tl.int32), head, k_cache, v_cache,
                page_table + tl.load(sequences + row) * pages_per_sequence, begin, end, scale, window,
                KV_HEADS, HALF, PAGE, ROWS, HALF_BLOCK, HEAD_BLOCK,
            )  # fmt: skip
            if work is not None:
                tl.atomic_add(work, end - begin)
            column = tl.arange(0, HEAD_BLOCK)
            inside = (member < GROUP)[:, None] & (column < 2 * HALF)[None, :]
            query = row.to(tl.int64) * KV_HEADS * GROUP + safe
            target = out + query[:, None] * 2 * HALF + column[None, :]
            parts = tl.cdiv(pages, each)
            if parts == 1:
                tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)
            else:
                mine = query * SPLITS + split
                tl.store(part_sums + mine[:, None] * 2 * HALF + column[None, :], sums, mask=inside)
                tl.store(part_top + mine, top, mask=member < GROUP)
                tl.store(part_total + mine, total, mask=member < GROUP)
                tl.debug_barrier()  # every thread's part is stored before this program's arrival
                if tl.atomic_add(arrived + row * KV_HEADS + head, 1, sem="acq_rel") == parts - 1:
                    tl.store(arrived + row * KV_HEADS + head, 0)
                    sums = tl.zeros((ROWS, HEAD_BLOCK), tl.float32)
                    total = tl.zeros((ROWS,), tl.float32)
                    top = tl.full((ROWS,), float("-inf"), tl.float32)
                    for other in range(parts):
                        theirs = query * SPLITS + other
                        other_top = tl.load(part_top + theirs, cache_modifier=".cg")
                        higher = tl.maximum(top, other_top)
                        shrink, grow = tl.exp2(top - higher), tl.exp2(other_top - higher)
                        total = total * shrink + tl.load(part_total + theirs, cache_modifier=".cg") * grow
                        at = part_sums + theirs[:, None] * 2 * HALF + column[None, :]
                        part = tl.load(at, mask=inside, other=0.0, cache_modifier=".cg")
                        sums = sums * shrink[:, None] + part * grow[:, None]
                        top = higher
                    tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)


LOG2_E = 1.4426950408889634


def attend(
    queries: Queries,
    k_cache: Tensor,
    v_cache: Tensor,
    place: Place,
    rows: Rows,
    out: Tensor,
    parts: Parts,
    work: Tensor | None = None,
) -> None:
    """out[row] = attention of q[row] over positions 0..its own (the last `window`) for listed rows. out: T [N, heads *
    hd]; caches of one layer: T [pages, kv_heads, PAGE, hd]. work: int32 [1], counts pages read, head by head."""
    kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    splits, group = parts.top.shape[2], queries.q.shape[1] // head_dim // kv_heads
    norm, half = queries.norm, head_dim // 2
    _decode[(queries.q.shape[0] * kv_heads * splits,)](
        *(queries.q, *parts_of(norm), queries.cos, queries.sin),
        *(k_cache, v_cache, place.page_table, place.sequences, place.positions, place.page_table.stride(0)),
        *(rows.index, rows.count, queries.scale * LOG2_E, queries.window, out),
        *parts,
        work,
        KV_HEADS=kv_heads,
        GROUP=group,
        HALF=half,
        PLUS_ONE=norm is not None and norm.plus_one,
        PAGE=PAGE,
        SPLITS=splits,
        ROWS=max(SMALLEST, triton.next_power_of_2(group)),
        HALF_BLOCK=max(SMALLEST, triton.next_power_of_2(half)),
        HEAD_BLOCK=max(SMALLEST, triton.next_power_of_2(head_dim)),
        num_warps=4,
        num_stages=2,
    )
