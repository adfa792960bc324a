"""The engine: submit requests, `step()` until they are done. A step is schedule, run, sample, collect.

What goes wrong in a pass fails the rows of that pass, which say so; all others go on. Calls from several threads take
turns. This file is *not* about text or budgets (`llm`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.engine.adjust import adjusted
from depthdial.engine.auto import AutoBudget
from depthdial.engine.batch import Batch, Passed
from depthdial.engine.device import DeviceLost, alive
from depthdial.engine.prompt_logprobs import read_aloud
from depthdial.engine.request import Request, Row
from depthdial.engine.runner import Runner
from depthdial.engine.sampling import choose, logprobs_of
from depthdial.engine.scheduler import Scheduler, Slice
from depthdial.engine.speculate import Draft, Speculator, accepted

log = logging.getLogger(__name__)

NOT_FINITE = (
    "the model's logits for this text are not finite (NaN or infinite), so no next token can be chosen; "
    "look for such values in the weights of the model or of the plug-in, or in this text's tokens' embeddings"
)


class Dial(NamedTuple):
    """A budget that moves, and the offset for it."""

    auto: AutoBudget
    offset_of: Callable[[float], float]


class Engine:
    """Runs requests, as many at a time as the scheduler lets in.

    ends: the tokens that end a text.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, batch: Batch, ends: frozenset[int]):
        self.runner, self.scheduler, self.batch, self.ends = runner, scheduler, batch, ends
        scheduler.roles = runner.roles
        self.speculator = Speculator(scheduler.stats.speculation)
        """Drafts for rows in lossless mode."""
        self.dial: Dial | None = None
        """What moves the budget of requests that leave it to the engine."""
        self.lost: str | None = None
        """Why the device is lost, once it is: all requests have failed, and whoever runs the engine starts another
        process."""
        self.lock = RLock()
        """Held by whoever drives the runner or the cache; calls of this class take it themselves."""

    def submit(self, request: Request, tokenizer: Any) -> None:
        """Queue a request; it gets its rows. ValueError if it could never fit into the cache, DeviceLost after that."""
        with self.lock:
            self._check()
            self.scheduler.check(len(request.token_ids) + request.limit)
            request.rows = [Row(request, i, tokenizer) for i in range(request.params.n)]
            for row in request.rows:
                self.scheduler.add(row)

    def cancel(self, request: Request) -> None:
        """End what is not done of a request and give its pages back; the tokens it has so far stay."""
        with self.lock:
            for row in request.rows:
                if row.finish_reason is None:
                    self._end(row, "cancelled")

    def step(self) -> list[Row]:
        """One round; the rows that got a token or failed. Raises DeviceLost in every round after the one in which the
        device was lost, which failed all rows."""
        with self.lock:
            self._check()
            slices = self.scheduler.schedule()
            touched: list[Row] = []
            for part in self._passes(self._drafted(slices, touched)):
                if self.lost is None:
                    touched += self._pass(part)
            if self.dial is not None:
                self._turn(self.dial, touched)
            return touched

    def _turn(self, dial: Dial, touched: Sequence[Row]) -> None:
        """Let the engine's own dial move, and the requests that follow it."""
        queue = self.scheduler
        written = [row for row in touched if row.error is None and len(row.ran_costs) > len(row.request.token_ids)]
        costs = [row.ran_costs[-1] for row in written]
        dial.auto.stepped(len(costs), sum(costs) / max(1, len(costs)), len(queue.waiting), queue.max_batch)
        offset = dial.offset_of(dial.auto.budget)
        for row in (*queue.running, *queue.waiting):
            request = row.request
            if request.moving and not (request.steady and request.begun):
                request.dials, request.target = request.dials._replace(written=offset), dial.auto.budget
        if queue.idle:
            dial.auto.rest()

    def _passes(self, slices: Sequence[Slice]) -> list[list[Slice]]:
        """Rows that decode before prompts, in a pass of their own where the runner has a faster way for few tokens."""
        singles = [part for part in slices if part.count == 1]
        verified = [part for part in slices if part.draft is not None]
        longer = [part for part in slices if part.count > 1 and part.draft is None]
        decoding = singles + verified
        if decoding and longer and sum(part.count for part in decoding) <= self.runner.small:
            return [decoding, longer]
        return [decoding + longer] if slices else []

    def _drafted(self, slices: list[Slice], touched: list[Row]) -> list[Slice]:
        """The slices with drafts for rows in lossless mode; rows whose drafting fails are left out, and touched."""
        lossless = {part.row: part for part in slices if part.row.request.params.lossless and part.decodes}
        if not lossless:
            return slices

        def run(rows: Sequence[Row], drafts: Sequence[Draft]) -> list[tuple[int, float, float]] | None:
            places = [row.computed + len(draft.tokens) for row, draft in zip(rows, drafts, strict=True)]
            parts = [Slice(*told, drafting=True) for told in zip(rows, places, [1] * len(rows), drafts, strict=True)]
            try:
                return self._draft(parts)
            except Exception as error:
                touched.extend(self._fail(parts, error))
                return None

        others = sum(part.count == 1 for part in slices) - len(lossless)
        drafts = self.speculator.plan(list(lossless), others, self.scheduler.room, run)
        found = []
        for part in slices:
            if part.row.slot is None:
                continue
            draft = drafts.get(part.row)
            found.append(part if draft is None else Slice(part.row, part.start, 1 + len(draft.tokens), draft))
        return found

    def run(self, slices: Sequence[Slice], batch: Batch | None = None) -> Passed:
        """One pass over tokens whose places in the cache are theirs to write; for whoever holds the lock.

        batch: to be filled, None that of generation."""
        batch = self.batch if batch is None else batch
        batch.fill(slices)
        passed = self.runner.run(batch)
        for part in slices:
            if not part.drafting and part.row.slot is not None:  # what verifies a draft writes at all visits again
                alone = part.row.request.params.n == 1
                batch.cache.settle(part.row.slot, part.start, part.start + part.count, alone)
        return passed

    def _draft(self, parts: Sequence[Slice]) -> list[tuple[int, float, float]]:
        """One pass of drafts: (token, its probability, true cost) of each."""
        prices = self.speculator.prices
        begun = prices.clock()
        passed = self.run(parts)
        assert passed.logits is not None
        made = []
        # in numpy: torch's threads would take the cores from the kernels', which wait for the next pass
        for part, row, cost in zip(parts, passed.logits.float().cpu().numpy(), passed.costs, strict=True):
            params = part.row.request.params
            if params.temperature or params.adjusts:
                place = part.start + 1
                scores = self._adjusted(torch.from_numpy(row), part, place)
                token = int(choose(scores[None], [params], [part.row.draw(place)]))
            else:
                token = int(row.argmax())
            finite = np.isfinite(row.max())  # else the base's own logits will say what becomes of the row
            made.append((token, float(1 / np.exp(row - row[token]).sum()) if finite else 0.0, cost))
        prices.note("draft", len(parts), prices.clock() - begun)
        return made

    def _pass(self, slices: Sequence[Slice]) -> list[Row]:
        prices = self.speculator.prices
        begun = prices.clock()
        try:
            passed = self.run(slices)
            tokens = passed.tokens or self._sample(slices, passed.logits)
        except Exception as error:  # whatever a pass may raise: it must not end the engine
            return self._fail(slices, error)
        if self.batch.untouched and self.batch.size == len(self.batch.last):
            prices.note("base", self.batch.size, prices.clock() - begun)
        touched, at, drawn = [], 0, 0
        bits = None if passed.keep is None else np.packbits(passed.keep, axis=0)
        for part in slices:
            places, count = slice(at, at + part.count), part.drawn
            got = tokens[drawn : drawn + count]
            at, drawn = at + part.count, drawn + count
            ran = None if bits is None else bits[:, places][:, part.count - count :]
            self._collect(part, got, passed.depths[places], passed.costs[places], ran)
            if count:
                touched.append(part.row)
        return touched

    def _collect(
        self, part: Slice, drawn: list[int], depths: list[int], costs: list[float], ran: np.ndarray | None
    ) -> None:
        """What a slice gave goes to its row: depths and costs, tokens, full pages to the prefix cache.

        ran: uint8 [bytes of a mask, drawn], the layers that ran for each token drawn; None: all.
        """
        row, draft = part.row, part.draft
        if -1 in drawn:
            self._end(row, "error", NOT_FINITE)
            return
        counts = row.request.params.lossless and part.decodes
        if draft is not None:
            drawn = accepted(draft.tokens, drawn)
            self.speculator.learn(row, draft, len(drawn) - 1)
            # one reading of the weights for all that was verified, and the passes of the draft
            depths, costs = depths[: len(drawn)], [(costs[0] + draft.cost) / len(drawn)] * len(drawn)
        row.note(part.start, depths, costs)
        self.scheduler.stats.ran(max(len(row.request.token_ids) - part.start, 0), costs)
        before, deepest = len(row.token_ids), self.batch.cache.shape.layers
        for i, (token, depth) in enumerate(zip(drawn, depths[len(depths) - len(drawn) :], strict=True)):
            if token < 0:
                self._end(row, "error", NOT_FINITE)
                break
            row.layers.append(b"" if ran is None or depth == deepest else ran[:, i].tobytes())
            row.push(token, self.ends)
            if row.finish_reason is not None:
                break
        if counts:
            self.speculator.stats.round(len(row.token_ids) - before)
        if len(row.logprobs) > len(row.token_ids):
            del row.logprobs[len(row.token_ids) :]
        if row.slot is None:  # it broke: what it left in the cache is no prefix for anybody
            return
        self.scheduler.ran(part)
        if row.finish_reason is not None:
            self.scheduler.remove(row)

    def _sample(self, slices: Sequence[Slice], logits: Tensor | None) -> list[int]:
        """The next token at each place that is asked for. logits: [places, V]."""
        if logits is None:
            return []
        if any(part.aloud for part in slices):
            logits = read_aloud(slices, logits)
        places = [(part, part.start + part.count - part.drawn + i + 1) for part in slices for i in range(part.drawn)]
        if not places:
            return []
        params, scores = [part.row.request.params for part, _ in places], logits
        if any(p.adjusts for p in params):
            scores = torch.stack([self._adjusted(logits[i], *place) for i, place in enumerate(places)])
        tokens = choose(scores, params, [part.row.draw(place) for part, place in places]).tolist()
        likeliest = logits.amax(-1)  # nan where any logit is
        if not likeliest.isfinite().all():
            tokens = [
                token if finite else -1 for token, finite in zip(tokens, likeliest.isfinite().tolist(), strict=True)
            ]
        for i, ((part, _), p) in enumerate(zip(places, params, strict=True)):
            if p.logprobs is not None and tokens[i] >= 0:
                part.row.logprobs.append(logprobs_of(logits[i], tokens[i], p.logprobs))
        return tokens

    def _adjusted(self, logits: Tensor, part: Slice, place: int) -> Tensor:
        """The logits [V] that the token at a place is drawn by; what a draft assumes stands before it."""
        request = part.row.request
        if not request.params.adjusts:
            return logits.float()
        first, known = len(request.token_ids), part.row.tokens
        written = [*known[first:], *(part.draft.tokens if part.draft is not None else ())][: place - first]
        return adjusted(logits, request.params, request.token_ids, written, self.ends)

    def _fail(self, slices: Sequence[Slice], error: Exception) -> list[Row]:
        said = " ".join(str(error).split()) or "no message"
        log.exception("a pass over %d rows failed", len(slices))
        for part in slices:
            self._end(part.row, "error", f"the pass of this request failed: {type(error).__name__}: {said}")
        failed = [part.row for part in slices]
        if not alive(device := self.batch.cache.k.device):
            self.lost = f"{device} answers no more after {type(error).__name__}: {said}; start again"
            others = [*self.scheduler.running, *self.scheduler.waiting]
            for row in others:
                self._end(row, "error", self.lost)
            failed += others
        return failed

    def _check(self) -> None:
        if self.lost is not None:
            raise DeviceLost(self.lost)

    def _end(self, row: Row, reason: Any, error: str | None = None) -> None:
        self.scheduler.remove(row)
        row.end(reason, error)
