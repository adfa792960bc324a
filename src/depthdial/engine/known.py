"""Run texts whose tokens are all known, by the passes that would read them as prompts and write what follows: what
scoring, maps and evaluation have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from depthdial.core.dial import Dials
from depthdial.engine.batch import Batch
from depthdial.engine.request import Request, Row
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.scheduler import Slice
from depthdial.engine.step import Engine

_PARAMS = SamplingParams(max_tokens=1, logprobs=0)  # asks for logits, not for the likeliest token alone


@dataclass
class Span:
    """Places of a row, from where it has been computed, that are to run."""

    row: Row
    end: int
    asked: int
    """Logits are asked for from this place on."""


class Part(NamedTuple):
    """What a pass gave of one span."""

    span: Span
    start: int
    depths: list[int]
    costs: list[float]
    keep: np.ndarray | None
    """bool or uint8 [visits, n] of the n tokens from `start` on; None: all ran all."""
    logits: Tensor | None
    """[m, V], of the last m of them; None: none were asked for. It holds until the next pass."""


class KnownTexts:
    """With an engine that is idle meanwhile; whoever submits a request then waits. tokenizer: that of the model;
    pass_tokens: most of one pass."""

    def __init__(self, engine: Engine, tokenizer: Any, pass_tokens: int):
        self.engine, self.cache, self.room = engine, engine.scheduler.cache, pass_tokens
        self._tokenizer = tokenizer
        self._batch = Batch(self.cache, pass_tokens, self.cache.k.device)
        self._batch.fleeting = True
        self._batch.measures = engine.batch.measures

    def row(self, tokens: Sequence[int], start: int, dials: Dials, slot: int | None = None) -> Row:
        """A text of which the tokens before `start` are read, and the others written; where both are run alike, all are
        read."""
        read = len(tokens) if dials.alike and not self.engine.runner.by_prompt else start
        row = Row(Request(None, list(tokens[:read]), _PARAMS, 0, dials, 1), 0, self._tokenizer)
        row.tokens, row.slot = list(tokens), slot
        return row

    def run(self, spans: Sequence[Span]) -> Iterator[Part]:
        """One pass over the next tokens of these spans, in order, as many as there is room for and as their offsets are
        known; their places in the cache are theirs to write. For whoever holds the engine's lock."""
        parts: list[tuple[Slice, Span]] = []
        left = self.room
        for span in spans:
            row, start = span.row, span.row.computed
            if count := int(min(left, span.end - start, row.horizon - start)):
                asked = min(count, max(0, start + count - span.asked))
                parts.append((Slice(row, start, count, scored=asked), span))
                left -= count
        if not parts:
            return
        parts.sort(key=lambda pair: pair[0].count > 1)  # single tokens come first
        passed, at, drawn = self.engine.run([part for part, _ in parts], self._batch), 0, 0
        for part, span in parts:
            places, own = slice(at, at + part.count), slice(drawn, drawn + part.asked)
            at, drawn = places.stop, own.stop
            depths, costs = passed.depths[places], passed.costs[places]
            part.row.note(part.start, depths, costs)
            part.row.computed += part.count
            keep = None if passed.keep is None else passed.keep[:, places]
            logits = None if passed.logits is None or not part.asked else passed.logits[own]
            yield Part(span, part.start, depths, costs, keep, logits)
