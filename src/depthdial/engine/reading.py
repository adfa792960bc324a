"""Read whole texts: which layers run each token, and the logits after it, by the passes that would read a prompt.

Where a text is cut into passes depends on the text alone: what it gives does not depend on those it is read with, but
for the last bits of bf16 (few tokens run by other kernels than many). This file is *not* about scores of texts that
begin alike (`score`); what it gives is tested against one pass of `Routed` over each text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthdial.engine.batch import Batch, Passed
from depthdial.engine.request import Request, Row
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.scheduler import Slice
from depthdial.engine.step import Engine
from depthdial.kernels.tensors import PAGE

_READ = SamplingParams(max_tokens=1, logprobs=0)  # asks for logits, not for the likeliest token alone

Look = Callable[[int, int, Tensor], None]
"""Told which text, the place of its first token, and the logits [n, V] of n tokens from there on."""


class Reader:
    """Reads with an engine that is idle meanwhile; whoever submits a request then waits.

    tokenizer: that of the model; pass_tokens: most of one pass.
    """

    def __init__(self, engine: Engine, tokenizer: Any, pass_tokens: int):
        self.engine, self._tokenizer, self._room = engine, tokenizer, pass_tokens
        self._cache = engine.scheduler.cache
        self._batch = Batch(self._cache, pass_tokens, self._cache.k.device)
        self._batch.fleeting = True
        self.layers = self._cache.shape.layers

    @property
    def _most(self) -> int:
        return min(self._cache.pages, self._cache.rows.shape[1]) * PAGE

    def fits(self, tokens: int) -> bool:
        """Can a text of so many tokens be read?"""
        return 0 < tokens <= self._most

    @torch.no_grad()
    def read(self, texts: Sequence[Sequence[int]], offset: float, look: Look | None = None) -> list[np.ndarray]:
        """The run mask of each text, bool [T, L]. offset: the dial's logit offset, `inf` is the untouched base. look:
        called with all logits, pass by pass.

        Raises ValueError, before anything runs, for a text that does not fit (`fits`); assertion: the engine is idle.
        """
        with self.engine.lock:
            assert self.engine.scheduler.idle, "somebody is generating"
            return self._read(texts, offset, look)

    def _read(self, texts: Sequence[Sequence[int]], offset: float, look: Look | None) -> list[np.ndarray]:
        if bad := [len(text) for text in texts if not self.fits(len(text))]:
            raise ValueError(
                f"a text of {bad[0]} tokens cannot be read: there is room for 1 to {self._most}; raise cache_tokens"
            )
        ran = [np.ones((len(text), self.layers), dtype=bool) for text in texts]
        waiting = deque(
            (i, Row(Request(None, list(text), _READ, 0, offset, 1), 0, self._tokenizer)) for i, text in enumerate(texts)
        )
        begun = 0
        """Tokens of the first waiting text that ran already."""
        open_: set[int] = set()
        try:
            while waiting:
                parts: list[tuple[Slice, int]] = []
                left, ended = self._room, []
                while waiting and left:
                    i, row = waiting[0]
                    if parts and not begun and row.length > left:
                        break
                    count = min(left, row.length - begun)
                    if not self._place(row, begun, begun + count, open_):
                        break
                    parts.append((Slice(row, begun, count, scored=0 if look is None else count), i))
                    left, begun = left - count, begun + count
                    if begun == row.length:
                        ended.append(waiting.popleft()[1])
                        begun = 0
                assert parts, "what fits alone gets its turn"
                parts.sort(key=lambda pair: pair[0].count > 1)  # single tokens come first
                self._batch.fill([part for part, _ in parts])
                _collect(parts, self.engine.runner.run(self._batch), ran, look)
                for row in ended:
                    open_.remove(row.slot)
                    self._cache.close(row.slot)
        finally:
            for slot in open_:
                self._cache.close(slot)
        return ran

    def _place(self, row: Row, begin: int, end: int, open_: set[int]) -> bool:
        """Room in the cache for the next tokens of a text; False if there is none before others end."""
        if row.slot is None:
            if not self._cache.free_slots:
                return False
            row.slot = self._cache.open()
            open_.add(row.slot)
        return self._cache.grow(row.slot, begin, end)


def _collect(parts: list[tuple[Slice, int]], passed: Passed, ran: list[np.ndarray], look: Look | None) -> None:
    """Give what a pass told to the texts it was of."""
    at = 0
    for part, i in parts:
        places, own = slice(at, at + part.count), slice(part.start, part.start + part.count)
        if passed.keep is not None:
            ran[i][own] = passed.keep[:, places].T
        if look is not None:
            assert passed.logits is not None
            look(i, part.start, passed.logits[places])
        at += part.count
