"""The tokens of one pass, flattened into buffers that are made once, and what the pass gave.

Rows that decode come first, one token each; then slices of prompts. This file is *not* about how they are run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depthdial.core.tokens import Tokens
from depthdial.engine.cache import Cache
from depthdial.engine.scheduler import Slice


class Batch:
    """N tokens of any rows, each with its place, its slot in the page table and its dial.

    ids: int64 [N]; positions, slots: int32 [N]; offsets: fp32 [N]; prompts: int64 [N], the place in its text at which
    what is written begins, of a token that is read the next one; all on the device. `inf` is the untouched base.
    """

    def __init__(self, cache: Cache, capacity: int, device: torch.device):
        self.cache = cache
        self.slices: Sequence[Slice] = ()
        self.size = self.singles = 0
        """Tokens of the pass; how many of them, the first ones, are alone in their row."""
        self._ids, self._positions = np.zeros(capacity, np.int64), np.zeros(capacity, np.int32)
        self._slots, self._offsets = np.zeros(capacity, np.int32), np.zeros(capacity, np.float32)
        self._prompts, self._reads = np.zeros(capacity, np.int64), np.zeros(capacity, np.bool_)
        arrays = self._ids, self._positions, self._slots, self._offsets, self._prompts
        self._host = [torch.from_numpy(array) for array in arrays]
        self._views: dict[int, list[Tensor]] = {}
        self._device = device
        self.ids, self.positions, self.slots, self.offsets, self.prompts = self._host
        self.untouched = False
        """Does every token run the untouched base?"""
        self.greedy = False
        """Is the likeliest token all that is asked of every row?"""
        self.reading = 0
        """Tokens of the pass that belong to their texts' prompts."""
        self.fleeting = False
        """Are its logits looked at before the next pass only? They may share their memory then."""
        self._logits = torch.empty(0, 0)
        self.lengths = torch.zeros(2, 0, dtype=torch.int64)
        """int64 [2, N], on the device, where `measures`: see `Rope.stretch`."""
        self.measures = False
        self.last: list[int] = []
        """Which tokens' logits are wanted: the last of their row, and those that verify its drafts."""

    def fill(self, slices: Sequence[Slice]) -> None:
        """Take the next pass; what the buffers held is overwritten."""
        self.slices, self.last, self.untouched, self.greedy, self.reading = slices, [], True, True, 0
        self.singles = at = 0
        for part in slices:
            row, start, count = part.row, part.start, part.count
            slot, params = row.slot, row.request.params
            assert slot is not None
            prompt = len(row.request.token_ids)
            read = min(max(prompt - start, 0), count)
            self._reads[at : at + read], self._reads[at + read : at + count] = True, False
            self.reading += read
            if count == 1:
                assert self.singles == at, "single tokens come first"
                self.singles += 1
                self._ids[at] = row.tokens[start] if part.draft is None else part.tokens[0]
                self._positions[at] = start
                self._slots[at], self._offsets[at] = slot, part.offset
                self._prompts[at] = start + 1 if read else prompt
                self.untouched = self.untouched and part.offset == np.inf
            else:
                end, shift = at + count, at - start
                self._ids[at:end] = part.tokens
                self._positions[at:end] = np.arange(start, start + count)
                self._slots[at:end] = slot
                self._prompts[at : at + read] = self._positions[at : at + read] + 1
                self._prompts[at + read : end] = prompt
                for begin, stop, offset in row.runs(start, start + count):
                    self._offsets[shift + begin : shift + stop] = offset
                    self.untouched = self.untouched and offset == np.inf
            at += count
            if asked := part.asked:
                self.last += range(at - asked, at)
                # a draft's probability is asked for, too
                asks = (
                    params.temperature or params.logprobs is not None or params.adjusts or part.drafting or part.aloud
                )
                self.greedy = self.greedy and not asks
        self.size = at
        self.ids, self.positions, self.slots, self.offsets, self.prompts = self._of_size(at)
        if self.measures:
            self.lengths = self._measured(slices).to(self._device)

    def _measured(self, slices: Sequence[Slice]) -> Tensor:
        each = []
        for part in slices:
            request, places = part.row.request, torch.arange(part.start, part.start + part.count)
            prompt = len(request.token_ids)
            so_far = (places + 1).clamp(min=prompt)
            each.append(torch.stack((so_far, torch.full_like(so_far, prompt + request.limit - 1))))
        return torch.cat(each, 1)

    @property
    def tokens(self) -> Tokens:
        """What a method may know of them."""
        return Tokens(self.offsets, self.positions.long(), self.ids, self.prompts)

    @property
    def reads(self) -> Tensor:
        """bool [N], on the CPU: does the token belong to its text's prompt?"""
        return torch.from_numpy(self._reads[: self.size])

    def room(self, rows: int, columns: int) -> Tensor:
        """fp32 [rows, columns] for logits; where they are fleeting, the same memory for pass after pass: fresh memory
        for those of a whole text costs as much as to fill it."""
        if not self.fleeting:
            return torch.empty(rows, columns)
        if len(self._logits) < rows or self._logits.shape[1] != columns:
            self._logits = torch.empty(rows, columns)
        return self._logits[:rows]

    def _of_size(self, size: int) -> list[Tensor]:
        if self._device.type != "cpu":
            return [tensor[:size].to(self._device) for tensor in self._host]
        if size not in self._views:  # one decode step after the other has the same size
            self._views[size] = [tensor[:size] for tensor in self._host]
        return self._views[size]


@dataclass(frozen=True)
class Passed:
    """What a pass gave."""

    logits: Tensor | None
    """[len(last), V], of the last token of each row that is complete; of any float dtype. None where none is complete,
    or where the pass chose the tokens itself."""
    depths: list[int]
    """Layers run for each token."""
    costs: list[float]
    """True cost of each token relative to dense."""
    tokens: list[int] | None = None
    """The likeliest token of each complete row, if the pass was greedy and its runner knows."""
    keep: np.ndarray | None = None
    """Which layers ran for each token, bool or uint8 [L, N], until the next pass; None: all of them."""
