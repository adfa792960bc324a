"""The engine: submit requests, `step()` until they are done. A step is schedule, run, sample, collect.

What goes wrong in a pass fails the rows of that pass, which say so; all others go on. Calls from several threads take
turns. This file is *not* about text or budgets (`llm`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from threading import RLock
from typing import Any

from torch import Tensor

from depthdial.engine.batch import Batch, Passed
from depthdial.engine.request import Request, Row
from depthdial.engine.runner import Runner
from depthdial.engine.sampling import choose, logprobs_of
from depthdial.engine.scheduler import Scheduler, Slice

log = logging.getLogger(__name__)


class Engine:
    """Runs requests, as many at a time as the scheduler lets in. ends: the tokens that end a text."""

    def __init__(self, runner: Runner, scheduler: Scheduler, batch: Batch, ends: frozenset[int]):
        self.runner, self.scheduler, self.batch, self.ends = runner, scheduler, batch, ends
        self._lock = RLock()

    def submit(self, request: Request, tokenizer: Any) -> None:
        """Queue a request; it gets its rows. ValueError if it could never fit into the cache."""
        with self._lock:
            self.scheduler.check(len(request.token_ids) + request.limit)
            request.rows = [Row(request, i, tokenizer) for i in range(request.params.n)]
            for row in request.rows:
                self.scheduler.add(row)

    def cancel(self, request: Request) -> None:
        """End what is not done of a request and give its pages back; the tokens it has so far stay."""
        with self._lock:
            for row in request.rows:
                if row.finish_reason is None:
                    self._end(row, "cancelled")

    def step(self) -> list[Row]:
        """One round; the rows that got a token or failed."""
        with self._lock:
            slices = self.scheduler.schedule()
            touched: list[Row] = []
            for part in self._passes(slices):
                touched += self._pass(part)
            return touched

    def _passes(self, slices: Sequence[Slice]) -> list[list[Slice]]:
        """Rows that decode before prompts, in a pass of their own where the runner has a faster way for few tokens."""
        singles = [part for part in slices if part.count == 1]
        longer = [part for part in slices if part.count > 1]
        if singles and longer and len(singles) <= self.runner.small:
            return [singles, longer]
        return [singles + longer] if slices else []

    def _pass(self, slices: Sequence[Slice]) -> list[Row]:
        try:
            self.batch.fill(slices)
            passed = self.runner.run(self.batch)
            rows = [part.row for part in slices if part.completes]
            tokens = passed.tokens or self._sample(rows, passed.logits)
        except Exception as error:  # whatever a pass may raise: it must not end the engine
            return self._fail(slices, error)
        self._collect(slices, passed)
        for row, token in zip(rows, tokens, strict=True):
            row.push(token, self.ends)
            if row.finish_reason is not None:
                self.scheduler.remove(row)
        return rows

    def _sample(self, rows: Sequence[Row], logits: Tensor | None) -> list[int]:
        """The next token of each row. logits: [rows, V]."""
        if not rows or logits is None:
            return []
        params = [row.request.params for row in rows]
        keys = [row.draw if p.temperature else 0 for row, p in zip(rows, params, strict=True)]
        tokens = choose(logits, params, keys).tolist()
        for i, (row, p) in enumerate(zip(rows, params, strict=True)):
            if p.logprobs is not None:
                row.logprobs.append(logprobs_of(logits[i], tokens[i], p.logprobs))
        return tokens

    def _collect(self, slices: Sequence[Slice], passed: Passed) -> None:
        """Depths and costs to their rows, full pages to the prefix cache."""
        at = 0
        for part in slices:
            end = at + part.count
            part.row.note(part.start, passed.depths[at:end], passed.costs[at:end])
            self.scheduler.ran(part)
            at = end

    def _fail(self, slices: Sequence[Slice], error: Exception) -> list[Row]:
        said = " ".join(str(error).split()) or "no message"
        log.exception("a pass over %d rows failed", len(slices))
        for part in slices:
            self._end(part.row, "error", f"the pass of this request failed: {type(error).__name__}: {said}")
        return [part.row for part in slices]

    def _end(self, row: Row, reason: Any, error: str | None = None) -> None:
        self.scheduler.remove(row)
        row.end(reason, error)
