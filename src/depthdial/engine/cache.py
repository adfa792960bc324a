"""The KV cache: pages of 64 tokens, handed to sequences as they grow, shared by samples and by equal prefixes.

A sequence holds a slot, one row of the page table that runners read. A page may have several holders; whoever writes
into one that is shared gets a copy first. This file is *not* about which sequence runs next (`scheduler`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.engine.prefix import Prefixes, Saved
from depthdial.kernels.tensors import PAGE


class Shape(NamedTuple):
    """What one token leaves in the cache: K and V of all layers."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class Cache:
    """Pages, slots and the table between them.

    tokens: room of the whole cache; context: most tokens of one sequence; slots: most sequences at a time.
    k, v: [L, pages, kv_heads, PAGE, head_dim]; table: int32 [slots, pages of a sequence], on the device.
    """

    def __init__(
        self, shape: Shape, tokens: int, context: int, slots: int, device: torch.device, prefixes: bool = True
    ):
        self.shape, self.pages = shape, pages_for(tokens)
        size = (shape.layers, self.pages, shape.kv_heads, PAGE, shape.head_dim)
        # masked keys are multiplied by 0, so what was never written must be finite
        self.k, self.v = (_zeros(size, shape.dtype, device) for _ in range(2))
        self.rows = np.zeros((slots, pages_for(context)), dtype=np.int32)
        """The table on the host; on a CPU `table` is the same memory."""
        self._host = torch.from_numpy(self.rows)
        self._device = None if device.type == "cpu" else self._host.to(device)
        self._stale = False
        self._free = list(range(self.pages))[::-1]
        self._holders = [0] * self.pages
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
    def available(self) -> int:
        """Pages that can be had: free ones, and saved prefixes nobody reads."""
        return len(self._free) + self.prefixes.idle

    @property
    def free_slots(self) -> int:
        return len(self._slots)

    def open(self, saved: list[Saved] | None = None) -> int:
        """A free slot, its first pages those of a saved prefix."""
        slot = self._slots.pop()
        self._held[slot] = []
        for entry in saved or ():
            self._hold(entry.page)
            self._append(slot, entry.page)
        return slot

    def close(self, slot: int) -> None:
        """Give a slot and its pages back; pages saved as prefixes stay until their room is needed."""
        for page in self._held.pop(slot):
            self._drop(page)
        self._slots.append(slot)

    def fork(self, slot: int, length: int) -> int:
        """A new slot that shares the pages of the first `length` tokens of another."""
        new = self._slots.pop()
        self._held[new] = []
        for page in self._held[slot][: pages_for(length)]:
            self._hold(page)
            self._append(new, page)
        return new

    def grow(self, slot: int, start: int, end: int) -> bool:
        """Make the places start..end-1 of a sequence its own to write, where start is its present length.

        False, and nothing changed, if there are too few pages.
        """
        held = self._held[slot]
        first, wanted = start // PAGE, pages_for(end)
        if wanted <= len(held) and self._holders[held[first]] == 1 and not self.prefixes.holds(held[first]):
            return True  # nearly every token that is decoded
        shared = first < len(held) and self._holders[held[first]] > 1
        if max(0, wanted - len(held)) + shared > self.available:
            return False
        if first < len(held):
            self._own(slot, first)
        while len(held) < wanted:
            self._append(slot, self._take())
        return True

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
        new = self._take()
        for cache in (self.k, self.v):
            cache[:, new] = cache[:, page]
        self._drop(page)
        held[index] = self.rows[slot, index] = new
        self._stale = True

    def _append(self, slot: int, page: int) -> None:
        held = self._held[slot]
        self.rows[slot, len(held)] = page
        held.append(page)
        self._stale = True

    def _take(self) -> int:
        page = self._free.pop() if self._free else self.prefixes.evict()
        self._holders[page] = 1
        return page

    def _hold(self, page: int) -> None:
        self._holders[page] += 1
        self.prefixes.use(page)

    def _drop(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page] and not self.prefixes.rest(page):
            self._free.append(page)


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # numpy asks the system for zeroed memory, which costs nothing until a page is written; torch writes it all
    return torch.from_numpy(np.zeros(int(np.prod(size)) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(size)
