"""Texts to rows of a map: what their tokens are, and what passes over them tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from depthdial.core.dial import Dials, PromptBudget
from depthdial.engine.step import Engine
from depthdial.maps.base_reading import Expectation
from depthdial.maps.classes import TokenClasses
from depthdial.maps.passes import TextJob, TextPass, passes_of
from depthdial.maps.pieces import Pieces
from depthdial.maps.schema import Facts, MapRow
from depthdial.maps.texts import MapText
from depthdial.models.converted import converted_of

BATCH_TOKENS = 2048


class Recorder:
    """Maps texts with a converted model.

    dials: of what is read and written (`LLM.dials`), one logit offset for both, or None: where the model's dials stand.
    name, budget, prompt_budget: for the record. scores: keep
    the routers' soft opinions. base: also run the base, for entropy and surprisal. alternatives: this many of the
    base's likeliest tokens at each position. batch_tokens: most tokens of one pass. engine: the model's; it runs the
    passes then (see `passes`), unless scores are asked for.

    Not to be used while another thread uses the engine. Raises ValueError for a model that is not converted.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        dials: Dials | float | None = None,
        name: str = "",
        budget: float | None = None,
        scores: bool = False,
        base: bool = True,
        alternatives: int = 0,
        batch_tokens: int = BATCH_TOKENS,
        engine: Engine | None = None,
        prompt_budget: PromptBudget | None = "same",
    ):
        if alternatives and not base:
            raise ValueError("alternatives are the base's; leave them out, or let the base run")
        if dials is None:
            settings = converted_of(model).settings
            dials = Dials(float(settings.offset), settings.read_offset)
        dials = dials if isinstance(dials, Dials) else Dials(dials)
        self.facts = Facts.of(model, name, budget, dials, alternatives, prompt_budget)
        self._passes = passes_of(model, tokenizer, dials, engine, scores, base, alternatives, batch_tokens)
        self._alike = dials.alike and "prompt" not in converted_of(model).method.reads
        self._alternatives = alternatives
        self._pieces, self._classes = Pieces(tokenizer), TokenClasses(tokenizer)

    def rows(self, texts: Sequence[MapText]) -> list[MapRow]:
        """One row per text, in the order given.

        An answer is written after all that stands before it was read, answers of before among it: a text with several
        answers is run once for each of them.
        """
        jobs = [_jobs(text, self._alike) for text in texts]
        passes = iter(self._passes([job for own in jobs for job in own]))
        return [
            self._row(text, _join(text, own, [next(passes) for _ in own]))
            for text, own in zip(texts, jobs, strict=True)
        ]

    def _row(self, text: MapText, run: TextPass) -> MapRow:
        base: dict[str, Any] = {}
        if (read := run.expectation) is not None:
            surprisal = torch.cat([torch.full((1,), math.nan), read.surprisal[:-1]])
            base = {"entropy": read.entropy.numpy(), "surprisal": surprisal.numpy()}
            if self._alternatives:
                base["alternatives"] = [[], *self._choices(read)[:-1]]
        return MapRow(
            id=text.id,
            task=text.task,
            group=text.group or text.id,
            forced=text.forced,
            token_ids=np.array(text.ids, np.int32),
            pieces=self._pieces(text.ids),
            generated=np.array(text.generated, bool),
            token_class=self._classes.lexical(text.ids),
            layers_used=run.ran.sum(1).astype(np.int16),
            cost=run.costs.astype(np.float32),
            ran=run.ran,
            scores=run.scores,
            **base,
        )

    def _choices(self, read: Expectation) -> list[list[tuple[str, float]]]:
        return [
            [(self._pieces.alone(i), p) for i, p in zip(ids, probabilities, strict=True)]
            for ids, probabilities in zip(read.ids.tolist(), read.probabilities.tolist(), strict=True)
        ]


def _jobs(text: MapText, alike: bool) -> list[TextJob]:
    """One for each answer, up to its end, with all before it read; and one that reads everything, where something
    stands after the last answer. The last of them is the whole text. alike: it does not matter what is read."""
    marks = [*text.generated]
    if alike or not any(marks):
        return [TextJob(text.ids, len(text.ids))]
    starts = [t for t, mark in enumerate(marks) if mark and (t == 0 or not marks[t - 1])]
    ends = [t + 1 for t, mark in enumerate(marks) if mark and (t + 1 == len(marks) or not marks[t + 1])]
    jobs = [TextJob(text.ids[:end], max(1, start)) for start, end in zip(starts, ends, strict=True)]
    return jobs if marks[-1] else [*jobs, TextJob(text.ids, len(text.ids))]


def _join(text: MapText, jobs: Sequence[TextJob], passes: Sequence[TextPass]) -> TextPass:
    """What ran for each token: where it was written, or in the pass over the whole text."""
    whole = passes[-1]
    ran, costs = whole.ran.copy(), whole.costs.copy()
    scores = None if whole.scores is None else whole.scores.copy()
    for job, own in zip(jobs[:-1], passes[:-1], strict=True):
        wrote = slice(job.read, len(job.ids))
        ran[wrote], costs[wrote] = own.ran[wrote], own.costs[wrote]
        if scores is not None and own.scores is not None:
            scores[wrote] = own.scores[wrote]
    return whole._replace(ran=ran, costs=costs, scores=scores)
