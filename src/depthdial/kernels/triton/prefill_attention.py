"""Prefill attention: listed queries of each sequence of a pass, in tiles, over the pages of that sequence.

Only kept queries cost anything; keys are those of every token, written before. Causal by position, so that a chunk
that continues a sequence attends to what is in the cache already.
"""

# pyright reads a kernel as a plain function: it knows neither launch options nor what compiling makes of arguments
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from depthdial.kernels.tensors import PAGE
from depthdial.kernels.triton.attention import LOG2_E, Queries, over_pages
from depthdial.kernels.triton.norm import parts_of
from depthdial.kernels.triton.rope import turned
from depthdial.kernels.triton.route import Place
from depthdial.kernels.triton.rows import row_of
from depthdial.kernels.triton.tiles import SMALLEST

QUERIES = 128
"""Listed queries in a tile."""


@triton.jit
def _prefill(
    q, q_norm, q_eps, cos, sin, k_cache, v_cache, page_table, sequences, positions, pages_per_sequence,
    index, bounds, tiles, scale, window, out, work,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, PLUS_ONE: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, HALF_BLOCK: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0) // tiles
    tile = tiles - 1 - tl.program_id(0) % tiles  # the longest rows of keys first
    head = tl.program_id(1)
    end_of_run = tl.load(bounds + run + 1)
    start = tl.load(bounds + run) + tile * ROWS
    if start < end_of_run:
        place = start + tl.arange(0, ROWS)
        valid = place < end_of_run
        # beyond the run: its last row again, so that no other sequence's position widens the loop
        place = tl.minimum(place, end_of_run - 1)
        row = row_of(index, place, end_of_run)
        position = tl.load(positions + row)
        half = tl.arange(0, HALF_BLOCK)
        angles = row[:, None] * HALF + half[None, :]
        c = tl.load(cos + angles, mask=(half < HALF)[None, :], other=0.0)
        s = tl.load(sin + angles, mask=(half < HALF)[None, :], other=0.0)
        query = row.to(tl.int64) * HEADS + head
        first, second = turned(q + query * 2 * HALF, q_norm, q_eps, c, s, HALF, HALF_BLOCK, PLUS_ONE)
        begin = 0
        if window is not None:
            begin = tl.maximum(tl.min(position, 0) + 1 - window, 0) // PAGE
        end = tl.max(position, 0) // PAGE + 1
        sequence = tl.load(sequences + tl.max(row, 0))
        sums, _top, total = over_pages(
            first, second, position, head // (HEADS // KV_HEADS), k_cache, v_cache,
            page_table + sequence * pages_per_sequence, begin, end, scale, window,
            KV_HEADS, HALF, PAGE, ROWS, HALF_BLOCK, HEAD_BLOCK,
        )  # fmt: skip
        if work is not None:
            tl.atomic_add(work, end - begin)
        column = tl.arange(0, HEAD_BLOCK)
        target = out + query[:, None] * 2 * HALF + column[None, :]
        inside = valid[:, None] & (column < 2 * HALF)[None, :]
        tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)


def attend_prompt(
    queries: Queries,
    k_cache: Tensor,
    v_cache: Tensor,
    place: Place,
    index: Tensor | None,
    bounds: Tensor,
    longest: int,
    out: Tensor,
    work: Tensor | None = None,
    tile: int = QUERIES,
) -> None:
    """out[row] = attention of q[row] for the rows index[bounds[0]:bounds[-1]]. out: T [N, heads * hd].

    bounds: int32 [runs + 1], on the device: where the list passes from one sequence to the next. longest: tokens of the
    longest run, listed or not, which is all that the host need know. work: int32 [1], counts pages read by each tile.
    """
    kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    heads, half, norm = queries.q.shape[1] // head_dim, head_dim // 2, queries.norm
    tile = max(SMALLEST, min(tile, triton.next_power_of_2(longest)))
    tiles = triton.cdiv(longest, tile)
    _prefill[((bounds.numel() - 1) * tiles, heads)](
        *(queries.q, *parts_of(norm), queries.cos, queries.sin),
        *(k_cache, v_cache, place.page_table, place.sequences, place.positions, place.page_table.stride(0)),
        *(index, bounds, tiles, queries.scale * LOG2_E, queries.window, out, work),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=half,
        PLUS_ONE=norm is not None and norm.plus_one,
        PAGE=PAGE,
        ROWS=tile,
        HALF_BLOCK=max(SMALLEST, triton.next_power_of_2(half)),
        HEAD_BLOCK=max(SMALLEST, triton.next_power_of_2(head_dim)),
        num_warps=8 if tile >= 128 else 4,
        num_stages=2,
    )
