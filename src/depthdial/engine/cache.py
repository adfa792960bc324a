"""The KV cache: pages of 64 tokens, handed to sequences as they grow, shared by samples and by equal prefixes.

A sequence holds a slot, one row of the page tables that runners read. A page is one unit of K and V for each visit of
the program; for a visit at which no token of the page has left anything, or behind whose window it lies, it has none. A
page may have several holders; whoever writes into one that is shared gets a copy first. This file is *not* about which
sequence runs next (`scheduler`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.engine.prefix import Prefixes, Saved
from depthdial.kernels.passing import PagedCache
from depthdial.kernels.tensors import PAGE

NONE = -1
"""In a table: no unit, since nothing is held there."""


class Shape(NamedTuple):
    """What one token leaves in the cache: K and V of all visits, or of fewer where a visit is sparse."""

    layers: int
    """Visits of the program."""
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    sparse: tuple[int, ...] = ()
    """The visits at which a token may leave nothing."""
    windows: tuple[int, ...] = ()
    """By visit, how many tokens a token attends to; 0: all before it. Empty: all visits so."""

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class Cache:
    """Units, pages, slots and the tables between them.

    tokens: room of the whole cache, where all leave K and V at every visit; context: most tokens of one sequence;
    slots: most sequences at a time. k, v: [units, kv_heads, PAGE, head_dim]; table: int32 [visits, slots, pages of a
    sequence], on the device, NONE where a page has no unit; held: uint8 [units, PAGE], 1 where a token has left K and
    V, read at sparse visits alone; None without any.
    """

    def __init__(
        self, shape: Shape, tokens: int, context: int, slots: int, device: torch.device, prefixes: bool = True
    ):
        self.shape, self.pages = shape, pages_for(tokens)
        units = self.pages * shape.layers
        size = (units, shape.kv_heads, PAGE, shape.head_dim)
        # masked keys are multiplied by 0, so what was never written must be finite
        self.k, self.v = (_zeros(size, shape.dtype, device) for _ in range(2))
        self.held = torch.zeros(units, PAGE, dtype=torch.uint8, device=device) if shape.sparse else None
        self.rows = np.full((shape.layers, slots, pages_for(context)), NONE, dtype=np.int32)
        """The table on the host; on a CPU `table` is the same memory."""
        self._host = torch.from_numpy(self.rows)
        self._device = None if device.type == "cpu" else self._host.to(device)
        self._stale = False
        self._sparse = np.array(shape.sparse, dtype=np.int64)
        self._windows = np.array(shape.windows or [0] * shape.layers)
        # the units of one visit lie side by side as long as no page lacks any
        self._free = np.arange(units).reshape(shape.layers, -1).T.ravel()[::-1].tolist()
        self._ids = count()
        self._units: dict[int, np.ndarray] = {}
        """Of each page that is in use or rests: int32 [visits]."""
        self._holders: dict[int, int] = {}
        self._held: dict[int, list[int]] = {}
        self._slots = list(range(slots))[::-1]
        self.prefixes = Prefixes(prefixes)

    @property
    def table(self) -> Tensor:
        if self._device is None:
            return self._host
        if self._stale:
            self._device.copy_(self._host)
            self._stale = False
        return self._device

    @property
    def paged(self) -> PagedCache:
        """The same for the kernels."""
        return PagedCache(self.k, self.v, self.table, self.held)

    @property
    def available(self) -> int:
        """Pages that can be had, whatever their tokens leave: free ones, and saved prefixes nobody reads."""
        return self._available // self.shape.layers

    @property
    def _available(self) -> int:
        """The same in units."""
        if not self.shape.sparse:
            return len(self._free) + self.prefixes.idle * self.shape.layers
        return len(self._free) + sum(int((self._units[page] >= 0).sum()) for page in self.prefixes.resting)

    @property
    def free_slots(self) -> int:
        return len(self._slots)

    def open(self, saved: Sequence[Saved] = ()) -> int:
        """A free slot, its first pages those of a saved prefix."""
        return self._open([entry.page for entry in saved])

    def fork(self, slot: int, length: int) -> int:
        """A new slot that shares the pages of the first `length` tokens of another."""
        return self._open(self._held[slot][: pages_for(length)])

    def _open(self, pages: Sequence[int]) -> int:
        slot = self._slots.pop()
        self._held[slot] = []
        for page in pages:
            self._holders[page] = self._holders.get(page, 0) + 1
            self.prefixes.use(page)
            self._append(slot, page)
        return slot

    def close(self, slot: int) -> None:
        """Give a slot and its pages back; pages saved as prefixes stay until their room is needed."""
        for page in self._held.pop(slot):
            self._drop(page)
        self._slots.append(slot)

    def grow(self, slot: int, start: int, end: int) -> bool:
        """Make the places start..end-1 of a sequence its own to write, at all visits; start is its present length.

        False, and nothing changed, if there is too little room.
        """
        held = self._held[slot]
        first, wanted = start // PAGE, pages_for(end)
        open_ = held[first:wanted]
        shared = bool(open_) and self._holders[open_[0]] > 1
        lacks = sum(int((self._units[page][self._sparse] < 0).sum()) for page in open_) if self.shape.sparse else 0
        more = max(0, wanted - len(held)) + shared
        if not more and not lacks and not (open_ and self.prefixes.holds(open_[0])):
            return True  # nearly every token that is decoded
        if more * self.shape.layers + lacks > self._available:
            return False
        if open_:
            self._own(slot, first)
        for index in range(first, min(wanted, len(held))) if lacks else ():
            self._complete(slot, index)
        while len(held) < wanted:
            self._append(slot, self._page(self._take(self.shape.layers)))
        return True

    def note(self, visit: int, slots: Tensor, positions: Tensor, leaves: Tensor) -> None:
        """Which of N tokens leave K and V at a sparse visit. slots, positions: int32 [N]; leaves: whole numbers [N]."""
        assert self.held is not None
        places = positions.long()
        self.held[self.table[visit, slots.long(), places // PAGE].long(), places % PAGE] = leaves.to(torch.uint8)

    def settle(self, slot: int, start: int, end: int, alone: bool = True) -> None:
        """The places start..end-1 have been written, and nothing before `start` will be again. Once pages are full,
        units are given back in which nothing is held, and those behind the window of whatever comes.

        alone: does no other sequence begin in the midst of this one?
        """
        full, held = range(start // PAGE, end // PAGE), self.held
        for index in full if held is not None else ():
            assert held is not None
            units = self._units[self._held[slot][index]]
            some = self._sparse[units[self._sparse] >= 0]
            self._lay_down(slot, index, some[~held[units[some]].bool().any(1).cpu().numpy()])
        if full and alone and self._windows.any():
            behind = np.where(self._windows, np.maximum(start + 1 - self._windows, 0) // PAGE, 0)
            """By visit: pages of which nobody will see a place."""
            for index in range(behind.max()):
                units = self._units[self._held[slot][index]]
                self._lay_down(slot, index, np.flatnonzero((behind > index) & (units >= 0)))

    def _lay_down(self, slot: int, index: int, visits: np.ndarray) -> None:
        """Give back a page's units of some visits, where nobody else has the page, now or later."""
        page = self._held[slot][index]
        if len(visits) and self._holders[page] == 1 and not self.prefixes.holds(page):
            units = self._units[page]
            self._give(units[visits])
            units[visits] = NONE
            self._show(slot, index, page)

    def shrink(self, slot: int, length: int) -> None:
        """Roll a sequence back to `length` tokens; pages behind them are given back."""
        held = self._held[slot]
        while len(held) > pages_for(length):
            self._drop(held.pop())

    def save(self, slot: int, index: int, key: bytes, depths: list[int], costs: list[float]) -> None:
        """Let later sequences read page `index` of a sequence, all 64 places of it written, under `key`."""
        self.prefixes.save(key, Saved(self._held[slot][index], depths, costs))

    def _own(self, slot: int, index: int) -> None:
        """Before writing into a page: out of the saved prefixes if it is held here alone, else a copy."""
        held = self._held[slot]
        page = held[index]
        if self._holders[page] == 1:
            self.prefixes.forget(page)
            return
        old = self._units[page].copy()
        has = old >= 0
        new = np.full_like(old, NONE)
        new[has] = self._take(int(has.sum()))
        for part in (self.k, self.v, *(() if self.held is None else (self.held,))):
            part[new[has]] = part[old[has]]
        self._drop(page)
        held[index] = self._page(new)
        self._show(slot, index, held[index])

    def _complete(self, slot: int, index: int) -> None:
        """Units for all visits of a page that is written by this slot alone."""
        page = self._held[slot][index]
        units = self._units[page]
        units[units < 0] = self._take(int((units < 0).sum()))
        self._show(slot, index, page)

    def _append(self, slot: int, page: int) -> None:
        held = self._held[slot]
        held.append(page)
        self._show(slot, len(held) - 1, page)

    def _show(self, slot: int, index: int, page: int) -> None:
        self.rows[:, slot, index] = self._units[page]
        self._stale = True

    def _page(self, units: np.ndarray) -> int:
        """A new page, with one holder."""
        page = next(self._ids)
        self._units[page], self._holders[page] = units, 1
        return page

    def _drop(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page] and not self.prefixes.rest(page):
            self._forget(page)

    def _forget(self, page: int) -> None:
        units = self._units.pop(page)
        del self._holders[page]
        self._give(units[units >= 0])

    def _take(self, number: int) -> np.ndarray:
        """Units in which nothing is held, int32."""
        while len(self._free) < number:
            self._forget(self.prefixes.evict())
        units = np.array([self._free.pop() for _ in range(number)], dtype=np.int32)
        if self.held is not None:
            self.held[units] = 0
        return units

    def _give(self, units: np.ndarray) -> None:
        self._free += units[::-1].tolist()


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # numpy asks the system for zeroed memory, which costs nothing until a page is written; torch writes it all
    return torch.from_numpy(np.zeros(int(np.prod(size)) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(size)
