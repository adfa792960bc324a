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
from depthdial.engine.reading import Reader
from depthdial.engine.step import Engine
from depthdial.maps.base_reading import BaseReading, Expected
from depthdial.models.convert import head_of, method_of, route_of, routed
from depthdial.models.halves import Halves
from depthdial.models.own import is_own

LOGITS = 512
"""Most tokens whose logits an engine holds at once."""


class Pass(NamedTuple):
    """Of one text of T tokens."""

    ran: np.ndarray
    """bool [T, L]"""
    scores: np.ndarray | None
    """fp16 [T, R]: each routed layer's first decision."""
    expected: Expected | None
    """At each position; None without the base."""


class Passes(Protocol):
    """Runs texts, given as token ids, in passes of its own size."""

    def __call__(self, texts: Sequence[Sequence[int]]) -> list[Pass]: ...


class RoutedPasses:
    """One pass of the routed model for the decisions, one of the base; layers below the first routed one run once.

    offset: the dial's, `inf` is the base; base: the offset of the pass that `reading` reads; scores: keep them. Not to
    be used while another thread uses `model.route`.
    """

    def __init__(
        self, model: Any, offset: float, base: float, reading: BaseReading | None, scores: bool, batch_tokens: int
    ):
        self.model, self.route, self.offset, self.base = model, route_of(model), offset, base
        self._layers = sorted(method_of(model).layers(len(self.route.ledger.layers)))
        self._reading, self._with_scores, self._room = reading, scores, batch_tokens
        self._halves = Halves(model, min((site.layer for site in routed(model)), default=0))

    def __call__(self, texts: Sequence[Sequence[int]]) -> list[Pass]:
        """Texts of like length share a pass."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, Pass] = {}
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(texts[order[count]]) <= self._room:
                count += 1
            batch, order = order[:count], order[count:]
            found |= zip(batch, self._batch([texts[i] for i in batch]), strict=True)
        return [found[i] for i in range(len(texts))]

    @torch.no_grad()
    def _batch(self, texts: Sequence[Sequence[int]]) -> list[Pass]:
        lengths = [len(text) for text in texts]
        # padding stands behind every text, where no token of it can see it
        padded = [[*text, *[0] * (max(lengths) - len(text))] for text in texts]
        ids = torch.tensor(padded, device=self.model.device)
        places = {"position_ids": torch.arange(ids.shape[1], device=ids.device)[None]}
        before, was_training = self.route.offset, self.model.training
        self.model.eval()
        try:
            self.route.offset = self.base
            lower = self._halves.lower(ids, **places)
            both = self.offset == self.base  # then one pass is both
            hidden = self._halves.upper(lower, **places) if self._reading is not None or both else None
            self.route.offset = self.offset
            if not both:
                self._halves.upper(lower, **places)
            ran, scores = self.route.keep(), self._scores()
        finally:
            self.route.offset = before
            self.model.train(was_training)
        reads = [None] * len(texts) if hidden is None or self._reading is None else self._read(hidden, ids, lengths)
        return [
            Pass(ran[:, b, :n].T.contiguous().numpy(), None if scores is None else scores[b, :n].numpy(), read)
            for b, (n, read) in enumerate(zip(lengths, reads, strict=True))
        ]

    def _scores(self) -> Tensor | None:
        """fp16 [B, T, R] of the pass that the route holds; None without scores."""
        first = {site.layer: d for site, d in sorted(self.route.decisions.items(), reverse=True)}
        opinions = [first[layer].score for layer in self._layers]
        if not self._with_scores or not opinions or any(score is None for score in opinions):
            return None
        return torch.stack([s for s in opinions if s is not None], -1).half().cpu()

    def _read(self, hidden: Tensor, ids: Tensor, lengths: list[int]) -> list[Expected]:
        assert self._reading is not None
        real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        real = real.to(ids.device)
        read = self._reading(hidden[real], ids.roll(-1, 1)[real])
        return [Expected(*parts) for parts in zip(*(column.split(lengths) for column in read), strict=True)]


class EnginePasses:
    """Passes of an engine that is idle meanwhile: the base's, then the texts at the dial. base: the offset of the
    former; others: for texts that the engine's cache has no room for."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        offset: float,
        base: float,
        reading: BaseReading | None,
        batch_tokens: int,
        others: Passes,
    ):
        self._offset, self._base, self._reading, self._others = offset, base, reading, others
        self._wide = Reader(engine, tokenizer, batch_tokens)
        self._narrow = Reader(engine, tokenizer, min(LOGITS, batch_tokens))

    def __call__(self, texts: Sequence[Sequence[int]]) -> list[Pass]:
        long = [i for i, text in enumerate(texts) if not self._wide.fits(len(text))]
        short = [i for i in range(len(texts)) if i not in set(long)]
        made = dict(zip(short, self._fitting([texts[i] for i in short]), strict=True))
        made |= zip(long, self._others([texts[i] for i in long]), strict=True)
        return [made[i] for i in range(len(texts))]

    def _fitting(self, texts: Sequence[Sequence[int]]) -> list[Pass]:
        if self._reading is None:
            return [Pass(ran, None, None) for ran in self._wide.read(texts, Dials.same(self._offset))]
        ran, expected = self._expected(texts, self._reading)
        if self._offset != self._base:  # else that was all
            ran = self._wide.read(texts, Dials.same(self._offset))
        return [Pass(mask, None, read) for mask, read in zip(ran, expected, strict=True)]

    def _expected(
        self, texts: Sequence[Sequence[int]], reading: BaseReading
    ) -> tuple[list[np.ndarray], list[Expected]]:
        found: list[list[Expected]] = [[] for _ in texts]

        def look(i: int, start: int, logits: Tensor) -> None:
            text = texts[i]
            coming = [*text[start + 1 : start + len(logits) + 1], 0][: len(logits)]  # what follows the last is not told
            found[i].append(reading.of_logits(logits, torch.tensor(coming, device=logits.device)))

        ran = self._narrow.read(texts, Dials.same(self._base), look)
        return ran, [Expected(*map(torch.cat, zip(*parts, strict=True))) for parts in found]


def passes_of(
    model: Any,
    tokenizer: Any,
    offset: float,
    engine: Engine | None,
    scores: bool,
    base: bool,
    alternatives: int,
    batch_tokens: int,
) -> Passes:
    """An engine's passes where there is one and nobody asks for scores, else those of `Routed`."""
    softcap = getattr(model.config, "final_logit_softcapping", None)
    reading = BaseReading(head_of(model), softcap, alternatives) if base else None
    untouched = offset if is_own(model) and model.plugin is None else math.inf
    slow = RoutedPasses(model, offset, untouched, reading, scores, batch_tokens)
    if engine is None or scores:
        return slow
    return EnginePasses(engine, tokenizer, offset, untouched, reading, batch_tokens, slow)
