"""One launch between K and V and the rest of a layer: K and V go to their pages, the router's code becomes a decision,
and the decisions become lists of rows. The program that comes last makes the lists; the host learns nothing.
"""

# pyright reads a kernel as a plain function: it knows neither launch options nor what compiling makes of arguments
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from depthdial.kernels.tensors import PAGE, Norm
from depthdial.kernels.triton.gate import Gate
from depthdial.kernels.triton.norm import parts_of
from depthdial.kernels.triton.rope import write_row
from depthdial.kernels.triton.rows import BLOCK, Rows, Split, list_rows


class Place(NamedTuple):
    """Where the tokens of a pass stand."""

    live: Rows
    """The rows that are tokens; those beyond are padding and touch nothing."""
    sequences: Tensor
    """int32 [N]"""
    positions: Tensor
    """int32 [N]"""
    page_table: Tensor
    """int32 [sequences, pages of a sequence]"""


class Choice(NamedTuple):
    """A layer's decision, of a router or a table, and where it is written."""

    router: Gate | None
    code: Tensor | None
    """T [N, r]: enc @ z of every live row."""
    offsets: Tensor
    """fp32 [N]; +inf keeps a row, with weight 1."""
    given: Tensor | None
    """uint8 [N]: the decision of a layer without a router."""
    keep: Tensor
    """uint8 [N]"""
    score: Tensor
    """fp32 [N]"""
    run: Tensor
    """fp32 [N]: weight on the MLP of a kept row."""
    skip: Tensor
    """fp32 [N]: weight on the adapter of a skipped row."""
    into: Split
    arrived: Tensor
    """int32 [1], 0 before and after each launch."""


@triton.jit
def _decide(
    row, code, folded, router_norm, bias, cut, eps, offsets, given, keep, score, run, skip,
    RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, NORM_FIRST: tl.constexpr, SOFT: tl.constexpr,
):  # fmt: skip
    offset = tl.load(offsets + row)
    untouched = offset == float("inf")
    weight = 1.0
    if code is not None:
        at = tl.arange(0, RANK_BLOCK)
        inside = at < RANK
        x = tl.load(code + row * RANK + at, mask=inside, other=0.0).to(tl.float32)
        if not NORM_FIRST:
            x = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
        x = x * tl.rsqrt(tl.sum(x * x, 0) / RANK + eps) * tl.load(router_norm + at, mask=inside, other=0.0)
        if NORM_FIRST:
            x = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
        logit = tl.sum(x * tl.load(folded + at, mask=inside, other=0.0), 0) + bias + offset
        opinion = tl.where(untouched, 1.0, 1.0 / (1.0 + tl.exp(-logit)))
        runs = untouched | (logit > cut)
        if SOFT:
            weight = opinion
            tl.store(skip + row, 1.0 - opinion)
        else:
            tl.store(skip + row, 1.0)
    else:
        runs = untouched | (tl.load(given + row) != 0)
        opinion = tl.where(runs, 1.0, 0.0)
        tl.store(skip + row, 1.0)
    tl.store(run + row, weight)
    tl.store(score + row, opinion)
    tl.store(keep + row, runs.to(tl.uint8))


@triton.jit
def _route(
    live, k, v, k_norm, k_eps, cos, sin, k_cache, v_cache, page_table, sequences, positions, pages_per_sequence,
    code, folded, router_norm, bias, cut, eps, offsets, given, keep, score, run, skip,
    kept, kept_count, skipped, skipped_count, arrived, index,
    KV_HEADS: tl.constexpr, HALF: tl.constexpr, PLUS_ONE: tl.constexpr, PAGE: tl.constexpr,
    HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
    RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, NORM_FIRST: tl.constexpr, SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    tokens = tl.load(live)
    if row < tokens:
        if k is not None:
            at = row if index is None else tl.load(index + row)
            write_row(
                at, k, v, k_norm, k_eps, cos, sin, k_cache, v_cache, page_table, sequences, positions,
                pages_per_sequence, KV_HEADS, HALF, PLUS_ONE, PAGE, HEADS_BLOCK, HALF_BLOCK,
            )  # fmt: skip
        if keep is not None:
            _decide(row, code, folded, router_norm, bias, cut, eps, offsets, given, keep, score, run, skip,
                    RANK, RANK_BLOCK, NORM_FIRST, SOFT)  # fmt: skip
    if keep is not None:
        tl.debug_barrier()  # every thread's stores come before this block's arrival
        if tl.atomic_add(arrived, 1, sem="acq_rel") == rows - 1:
            tl.store(arrived, 0)
            list_rows(keep, kept, kept_count, skipped, skipped_count, rows, tokens, BLOCK)


def route(
    k: Tensor | None,
    v: Tensor | None,
    k_norm: Norm | None,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    place: Place,
    choice: Choice | None,
) -> None:
    """Writes K (normed, rotated) and V of every live row into the pages of one layer; makes and lists its decision.

    k, v: T [N, kv_heads * hd], None where they are not to be written (yet); cos, sin: T [N, hd / 2]; caches: T [pages,
    kv_heads, PAGE, hd]. choice: None where every live row runs the layer, or its decision was made before; live rows
    may be a list then.
    """
    assert choice is None or place.live.index is None
    rows, (kv_heads, head_dim) = len(place.positions), (k_cache.shape[1], k_cache.shape[3])
    router = None if choice is None else choice.router
    rank = 1 if router is None else router.folded.numel()
    table = place.page_table
    _route[(rows,)](
        *(place.live.count, k, v, *parts_of(k_norm)),
        *(cos, sin, k_cache, v_cache, table, place.sequences, place.positions, table.stride(0)),
        *((None,) * 6 if router is None or choice is None else _router_arguments(router, choice.code)),
        *((None,) * 11 if choice is None else _choice_arguments(choice)),
        place.live.index,
        KV_HEADS=kv_heads,
        HALF=head_dim // 2,
        PLUS_ONE=k_norm is not None and k_norm.plus_one,
        PAGE=PAGE,
        HEADS_BLOCK=triton.next_power_of_2(kv_heads),
        HALF_BLOCK=triton.next_power_of_2(head_dim // 2),
        RANK=rank,
        RANK_BLOCK=triton.next_power_of_2(rank),
        NORM_FIRST=router is None or router.norm_first,
        SOFT=router is not None and router.soft,
        BLOCK=min(BLOCK, triton.next_power_of_2(max(rows, 16))),
    )


def _router_arguments(router: Gate, code: Tensor | None):
    return code, router.folded, router.scale, float(router.bias), float(router.cut), router.eps


def _choice_arguments(choice: Choice):
    kept, skipped = choice.into
    return (
        *(choice.offsets, choice.given, choice.keep, choice.score, choice.run, choice.skip),
        *(kept.index, kept.count, skipped.index, skipped.count, choice.arrived),
    )
