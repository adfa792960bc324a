"""Which rows a kernel works on: lists and their lengths, made on the device from a keep mask.

The order is ascending whatever the schedule of the blocks, so that a pass is deterministic.
"""

# pyright reads a kernel as a plain function: it knows neither launch options nor what compiling makes of arguments
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


class Rows(NamedTuple):
    """The rows index[:count]; without an index, the rows 0..count-1."""

    count: Tensor
    """int32 [1], on the device: nobody on the host need know it."""
    index: Tensor | None = None
    """int32 [N]; what lies beyond `count` is never read."""


class Split(NamedTuple):
    """The live rows of a pass, parted by a layer's decision."""

    kept: Rows
    skipped: Rows

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Split:
        """Buffers for passes of up to `rows` rows."""
        counts, lists = (torch.zeros(2, n, dtype=torch.int32, device=device) for n in (1, rows))
        return cls(*(Rows(count.clone(), index.clone()) for count, index in zip(counts, lists, strict=True)))


@triton.jit
def row_of(index, place, count):
    """The rows at `place` of a list (row 0 beyond its end, where nothing may be stored)."""
    if index is None:
        row = tl.where(place < count, place, 0)
    else:
        row = tl.load(index + place, mask=place < count, other=0)
    return row


@triton.jit
def list_rows(keep, kept, kept_count, skipped, skipped_count, rows, live, BLOCK: tl.constexpr):
    """By one program: both lists from keep, uint8 [rows]; rows at `live` and beyond are in neither."""
    kept_so_far = 0
    skipped_so_far = 0
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        # other programs of this launch may have written it: not from this block's first-level cache
        flag = tl.load(keep + row, mask=row < live, other=0, cache_modifier=".cg")
        runs = ((flag != 0) & (row < live)).to(tl.int32)
        skips = ((flag == 0) & (row < live)).to(tl.int32)
        tl.store(kept + kept_so_far + tl.cumsum(runs, 0) - runs, row, mask=runs != 0)
        tl.store(skipped + skipped_so_far + tl.cumsum(skips, 0) - skips, row, mask=skips != 0)
        kept_so_far += tl.sum(runs, 0)
        skipped_so_far += tl.sum(skips, 0)
    tl.store(kept_count, kept_so_far)
    tl.store(skipped_count, skipped_so_far)


@triton.jit
def _split(keep, kept, kept_count, skipped, skipped_count, live, rows, BLOCK: tl.constexpr):
    list_rows(keep, kept, kept_count, skipped, skipped_count, rows, tl.load(live), BLOCK)


def split(keep: Tensor, live: Tensor, into: Split) -> None:
    """Fills `into` from keep, uint8 [N], and live, int32 [1]: how many of the N rows there really are."""
    rows = keep.numel()
    block = min(BLOCK, triton.next_power_of_2(max(rows, 16)))
    kept, skipped = into
    _split[(1,)](keep, kept.index, kept.count, skipped.index, skipped.count, live, rows, BLOCK=block)
