"""Read whole texts: which layers run each token, and the logits after it, by the passes that would read a prompt, and
write what follows it.

Where a text is cut into passes depends on the text alone: what it gives does not depend on those it is read with, but
for the last bits of bf16 (few tokens run by other kernels than many). This file is *not* about scores of texts that
begin alike (`score`); what it gives is tested against one pass of `Routed` over each text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.core.dial import Dials
from depthdial.engine.cache import pages_for
from depthdial.engine.known import KnownTexts, Span
from depthdial.engine.request import Row
from depthdial.engine.step import Engine
from depthdial.kernels.tensors import PAGE

Look = Callable[[int, int, Tensor], None]
"""Told which text, the place of its first token, and the logits [n, V] of n tokens from there on."""


class Read(NamedTuple):
    """What ran for a text of T tokens."""

    ran: np.ndarray
    """bool [T, L]"""
    costs: np.ndarray
    """float64 [T]: true cost of each token, relative to dense."""


class Reader:
    """Reads with an engine that is idle meanwhile; whoever submits a request then waits.

    tokenizer: that of the model; pass_tokens: most of one pass.
    """

    def __init__(self, engine: Engine, tokenizer: Any, pass_tokens: int):
        self.engine, self._known, self._cache = (
            engine,
            KnownTexts(engine, tokenizer, pass_tokens),
            engine.scheduler.cache,
        )
        self.layers = self._cache.shape.layers

    @property
    def _most(self) -> int:
        return min(self._cache.pages, self._cache.rows.shape[2]) * PAGE

    def fits(self, tokens: int) -> bool:
        """Can a text of so many tokens be read?"""
        return 0 < tokens <= self._most

    @torch.no_grad()
    def read(
        self,
        texts: Sequence[Sequence[int]],
        dials: Dials,
        look: Look | None = None,
        prompts: Sequence[int] | None = None,
    ) -> list[Read]:
        """What ran for each text. dials: where it is read and written (`LLM.dials`, or offsets by
        hand). look: called with all logits, pass by pass. prompts: how many tokens of each text are read, at least one;
        the others are written, block by block where a budget is held. None: all are read.

        Raises ValueError, before anything runs, for a text that does not fit (`fits`); assertion: the engine is idle.
        """
        with self.engine.lock:
            assert self.engine.scheduler.idle, "somebody is generating"
            return self._read(texts, dials, look, [len(t) for t in texts] if prompts is None else prompts)

    def _read(
        self, texts: Sequence[Sequence[int]], dials: Dials, look: Look | None, prompts: Sequence[int]
    ) -> list[Read]:
        if bad := [len(text) for text in texts if not self.fits(len(text))]:
            raise ValueError(
                f"a text of {bad[0]} tokens cannot be read: there is room for 1 to {self._most}; raise cache_tokens"
            )
        ran = [np.ones((len(text), self.layers), dtype=bool) for text in texts]
        rows = [self._known.row(text, prompt, dials) for text, prompt in zip(texts, prompts, strict=True)]
        waiting = {id(row): i for i, row in enumerate(rows)}
        open_: set[int] = set()
        try:
            while waiting:
                spans = self._spans([rows[i] for i in waiting.values()], open_, look is not None)
                assert spans, "what fits alone gets its turn"
                for part in self._known.run(spans):
                    row, i = part.span.row, waiting[id(part.span.row)]
                    if part.keep is not None:
                        ran[i][part.start : part.start + len(part.depths)] = part.keep.T
                    if look is not None:
                        assert part.logits is not None
                        look(i, part.start, part.logits)
                    if row.computed == row.length:
                        assert row.slot is not None
                        open_.remove(row.slot)
                        self._cache.close(row.slot)
                        del waiting[id(row)]
        finally:
            for slot in open_:
                self._cache.close(slot)
        return [Read(mask, np.array(row.ran_costs)) for mask, row in zip(ran, rows, strict=True)]

    def _spans(self, rows: Sequence[Row], open_: set[int], looking: bool) -> list[Span]:
        """Of the next pass: of each text that waits, in order, as much as its offsets are known for."""
        spans: list[Span] = []
        left = self._known.room
        for row in rows:
            count = int(min(row.length, row.horizon)) - row.computed
            if left <= 0 or (spans and not row.computed and count > left) or not self._place(row, open_):
                break
            spans.append(Span(row, row.length, 0 if looking else row.length))
            left -= count
        return spans

    def _place(self, row: Row, open_: set[int]) -> bool:
        """Room in the cache for a whole text; False if there is none before others end."""
        if row.slot is not None:
            return True
        if not self._cache.free_slots or pages_for(row.length) > self._cache.available:
            return False
        open_.add(slot := self._cache.open())
        row.slot = slot
        return self._cache.grow(slot, 0, row.length)
