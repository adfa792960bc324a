"""What texts give when a model reads them: which layers ran each token, router scores, what the base expected.

`RoutedPasses` are those of `Routed`, the meaning of every method. `EnginePasses` are an engine's own: the same in fp32,
and in bf16 but for near-ties of a gate, at the speed of prefill; an engine tells no router scores.

What was expected at each position is what the untouched base expects. A model that was pre-trained with its routers has
no base: there it is what the model itself expects, in the one pass that decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from depthdial.core.dial import Dials
from depthdial.core.hold import BLOCK
from depthdial.engine.dials import Held
from depthdial.engine.reading import Read, Reader
from depthdial.engine.step import Engine
from depthdial.maps.base_reading import BaseReading, Expectation
from depthdial.models.convert import head_of
from depthdial.models.converted import converted_of
from depthdial.models.halves import Halves
from depthdial.models.head import shaping_of
from depthdial.models.own import is_own

LOGITS = 512
"""Most tokens whose logits an engine holds at once."""


class TextJob(NamedTuple):
    """A text to be run."""

    ids: Sequence[int]
    read: int
    """How many of its tokens are read, as a prompt is, at least one; the others are written."""


class TextPass(NamedTuple):
    """Of one text of T tokens."""

    ran: np.ndarray
    """bool [T, L]"""
    costs: np.ndarray
    """float64 [T]: true cost of each token, relative to dense."""
    scores: np.ndarray | None
    """fp16 [T, R]: each routed layer's first decision."""
    expectation: Expectation | None
    """At each position; None without the base."""


class Passes(Protocol):
    """Runs texts, given as token ids, in passes of its own size."""

    def __call__(self, jobs: Sequence[TextJob]) -> list[TextPass]: ...


class RoutedPasses:
    """One pass of the routed model for the decisions, one of the base; layers below the first routed one run once.

    Where a budget is held, what is written depends on what was written before, so the pass for the decisions is run
    until they stand: a block more with each time. base: the offset of the pass that `reading` reads; scores: keep them.
    """

    def __init__(
        self, model: Any, dials: Dials, base: float, reading: BaseReading | None, scores: bool, batch_tokens: int
    ):
        self.model, self.converted, self.dials, self.base = model, converted_of(model), dials, base
        self._reading, self._with_scores, self._room = reading, scores, batch_tokens
        self._halves = Halves(model)

    def __call__(self, jobs: Sequence[TextJob]) -> list[TextPass]:
        """Texts of like length share a pass."""
        order = sorted(range(len(jobs)), key=lambda i: len(jobs[i].ids))
        passes: dict[int, TextPass] = {}
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(jobs[order[count]].ids) <= self._room:
                count += 1
            batch, order = order[:count], order[count:]
            passes |= zip(batch, self._batch([jobs[i] for i in batch]), strict=True)
        return [passes[i] for i in range(len(jobs))]

    @torch.no_grad()
    def _batch(self, jobs: Sequence[TextJob]) -> list[TextPass]:
        lengths = [len(job.ids) for job in jobs]
        # padding stands behind every text, where no token of it can see it
        rows = [[*job.ids, *[0] * (max(lengths) - len(job.ids))] for job in jobs]
        ids = torch.tensor(rows, device=self.model.device)
        places = {"position_ids": torch.arange(ids.shape[1], device=ids.device)[None]}
        prompt, was_training = torch.tensor([job.read for job in jobs], device=ids.device), self.model.training
        route = self.converted.route
        self.model.eval()
        with self.converted.using(offset=self.base, read=None, prompt=prompt):
            lower = self._halves.lower(ids, **places)
            both = self.dials.alike and self.dials.written == self.base  # then one pass is both
            hidden = self._halves.upper(lower, **places) if self._reading is not None or both else None
            if not both:
                self._decide(jobs, lower, places)
            ran, costs, scores = route.keep(), route.token_cost().double().cpu(), self._scores()
        self.model.train(was_training)
        reads = [None] * len(jobs) if hidden is None or self._reading is None else self._read(hidden, ids, lengths)
        return [
            TextPass(
                ran[:, b, :n].T.contiguous().numpy(),
                costs[b, :n].numpy(),
                None if scores is None else scores[b, :n].numpy(),
                read,
            )
            for b, (n, read) in enumerate(zip(lengths, reads, strict=True))
        ]

    def _decide(self, jobs: Sequence[TextJob], lower: Tensor, places: dict[str, Tensor]) -> None:
        """The pass at the dials, the last of this thread when it is done."""
        rows, length, _ = lower.shape
        costs, before = [[]] * rows, None
        while True:
            of_jobs = [_offsets(job, self.dials, own, length) for job, own in zip(jobs, costs, strict=True)]
            offsets = torch.tensor(of_jobs, device=lower.device)
            if before is not None and torch.equal(offsets, before):
                return
            with self.converted.using(offset=offsets):
                self._halves.upper(lower, **places)
            if self.dials.hold is None:
                return
            costs, before = self.converted.route.token_cost().tolist(), offsets

    def _scores(self) -> Tensor | None:
        """fp16 [B, T, R] of this thread's last pass; None without scores."""
        decisions, visit_of = self.converted.route.decisions, self.converted.program.visit_of
        first = {visit_of[s]: decisions[s] for s in reversed(self.converted.program.routed)}
        opinions = [first[visit].score for visit in sorted(first)]
        if not self._with_scores or not opinions or any(score is None for score in opinions):
            return None
        return torch.stack([s for s in opinions if s is not None], -1).half().cpu()

    def _read(self, hidden: Tensor, ids: Tensor, lengths: list[int]) -> list[Expectation]:
        assert self._reading is not None
        real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        real = real.to(ids.device)
        columns = self._reading(hidden[real], ids.roll(-1, 1)[real])
        return [Expectation(*parts) for parts in zip(*(column.split(lengths) for column in columns), strict=True)]


class EnginePasses:
    """Passes of an engine that is idle meanwhile: the base's, then the texts at the dials. base: the offset of the
    former; others: for texts that the engine's cache has no room for."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        dials: Dials,
        base: float,
        reading: BaseReading | None,
        batch_tokens: int,
        others: Passes,
    ):
        self._dials, self._base, self._reading, self._others = dials, base, reading, others
        self._wide = Reader(engine, tokenizer, batch_tokens)
        self._narrow = Reader(engine, tokenizer, min(LOGITS, batch_tokens))

    def __call__(self, jobs: Sequence[TextJob]) -> list[TextPass]:
        long = [i for i, job in enumerate(jobs) if not self._wide.fits(len(job.ids))]
        short = [i for i in range(len(jobs)) if i not in set(long)]
        passes = dict(zip(short, self._fitting([jobs[i] for i in short]), strict=True))
        passes |= zip(long, self._others([jobs[i] for i in long]), strict=True)
        return [passes[i] for i in range(len(jobs))]

    def _fitting(self, jobs: Sequence[TextJob]) -> list[TextPass]:
        texts, prompts = [job.ids for job in jobs], [job.read for job in jobs]
        if self._reading is None:
            return [TextPass(*read, None, None) for read in self._wide.read(texts, self._dials, prompts=prompts)]
        ran, expectations = self._expectations(texts, prompts, self._reading)
        if not (self._dials.alike and self._dials.written == self._base):  # else that was all
            ran = self._wide.read(texts, self._dials, prompts=prompts)
        return [TextPass(*read, None, expectation) for read, expectation in zip(ran, expectations, strict=True)]

    def _expectations(
        self, texts: Sequence[Sequence[int]], prompts: Sequence[int], reading: BaseReading
    ) -> tuple[list[Read], list[Expectation]]:
        expectations: list[list[Expectation]] = [[] for _ in texts]

        def look(i: int, start: int, logits: Tensor) -> None:
            text = texts[i]
            coming = [*text[start + 1 : start + len(logits) + 1], 0][: len(logits)]  # nothing follows the last
            expectations[i].append(reading.of_logits(logits, torch.tensor(coming, device=logits.device)))

        ran = self._narrow.read(texts, Dials(self._base), look, prompts=prompts)
        return ran, [Expectation(*map(torch.cat, zip(*parts, strict=True))) for parts in expectations]


def passes_of(
    model: Any,
    tokenizer: Any,
    dials: Dials,
    engine: Engine | None,
    scores: bool,
    base: bool,
    alternatives: int,
    batch_tokens: int,
) -> Passes:
    """An engine's passes where there is one and nobody asks for scores, else those of `Routed`."""
    reading = BaseReading(head_of(model), shaping_of(model.config), alternatives) if base else None
    base_offset = dials.written if is_own(model) and converted_of(model).plugin is None else math.inf
    slow = RoutedPasses(model, dials, base_offset, reading, scores, batch_tokens)
    if engine is None or scores:
        return slow
    return EnginePasses(engine, tokenizer, dials, base_offset, reading, batch_tokens, slow)


def _offsets(job: TextJob, dials: Dials, costs: Sequence[float], length: int) -> list[float]:
    """The dial of each of `length` places, those of padding among them, by what the tokens cost in the pass before:
    what is right up to the end of a block is right one block on."""
    offsets = [dials.written]
    if dials.hold is not None:
        hold = Held(dials.hold)
        hold.see(costs[job.read : len(job.ids)])
        offsets = hold.offsets
    last = len(offsets) - 1
    return [
        dials.reading if place < job.read else offsets[min((place - job.read) // BLOCK, last)]
        for place in range(length)
    ]
