"""Score texts: how likely is what follows a context, by the logits of the very passes that would give it.

The token at place p is scored by the logits at place p - 1, under the router's decisions at the asked-for offsets: a
context is read, what follows it is written, block by block where a budget is held. Texts of a group (the choices of one
question) begin alike: what they share runs once, then each goes on from there. This file is *not* about text or
budgets; what it gives is tested against one pass of `Routed` over each whole text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from depthdial.core.dial import Dials
from depthdial.engine.cache import pages_for
from depthdial.engine.known import KnownTexts, Part, Span
from depthdial.engine.step import Engine
from depthdial.kernels.tensors import PAGE

PASS = 512
"""Most tokens of one pass."""


class Text(NamedTuple):
    """A text, the tokens from place `start` (at least 1) to its end to be scored: those before are read, these are
    written. Its last token is never run."""

    tokens: Sequence[int]
    start: int


class Ran(NamedTuple):
    """Sums over tokens that ran."""

    tokens: int = 0
    layers: int = 0
    cost: float = 0.0
    """True cost relative to dense."""

    def plus(self, depths: Sequence[int], costs: Sequence[float]) -> Ran:
        return Ran(self.tokens + len(depths), self.layers + sum(depths), self.cost + sum(costs))


@dataclass
class Score:
    """What a text gave. Tokens shared within a group are counted for its first text alone."""

    logprob: float = 0.0
    """Nats, summed over the scored tokens."""
    greedy: bool = True
    """Is each scored token the likeliest one?"""
    dense: int = 0
    """Scored tokens whose logits the untouched base gave: at least the first one where the context is read in full."""
    context: Ran = field(default_factory=Ran)
    """Tokens before `start`: what is read."""
    scored: Ran = field(default_factory=Ran)
    """Tokens from `start` on: what is written; the last one never runs."""


@dataclass
class _Shared(Span):
    """Run for the texts `of` of a group."""

    of: list[tuple[Text, Score]]
    tails: list[tuple[Text, Score]]
    """Texts that go on from here, once it has run."""


class Scorer:
    """Scores texts with an engine that is idle meanwhile; whoever submits a request then waits. tokenizer: that of the
    model."""

    def __init__(self, engine: Engine, tokenizer: Any, pass_tokens: int = PASS):
        self.engine, self._known, self._cache = (
            engine,
            KnownTexts(engine, tokenizer, pass_tokens),
            engine.scheduler.cache,
        )

    def chunks(self, groups: Sequence[Sequence[Text]]) -> Iterator[slice]:
        """Cut groups into chunks for `score`. What a chunk gives depends on the chunk alone."""
        first = slots = pages = 0
        for i, group in enumerate(groups):
            own = self._pages(group)
            if i > first and (slots + len(group) > self.most or pages + own > self._cache.pages):
                yield slice(first, i)
                first, slots, pages = i, 0, 0
            slots, pages = slots + len(group), pages + own
        if groups:
            yield slice(first, len(groups))

    @property
    def most(self) -> int:
        """Most texts of a chunk, so of a group."""
        return self._cache.rows.shape[1]

    @torch.no_grad()
    def score(self, groups: Sequence[Sequence[Text]], dials: Dials) -> list[list[Score]]:
        """The score of each text of each group. dials: where it is read and written (`LLM.dials`, or offsets by hand);
        those of one offset run a text as a prompt from end to end.

        Raises ValueError where a group cannot fit into the cache, and for logits that are not finite; assertion: the
        engine is idle.
        """
        with self.engine.lock:
            assert self.engine.scheduler.idle, "somebody is generating"
            return self._scores(groups, dials)

    def _scores(self, groups: Sequence[Sequence[Text]], dials: Dials) -> list[list[Score]]:
        found = [[Score() for _ in group] for group in groups]
        waiting: list[_Shared] = []
        slots: set[int] = set()
        try:
            for group, scores in zip(groups, found, strict=True):
                if len(group) > self.most or self._pages(group) > self._cache.pages:
                    raise ValueError(
                        f"{len(group)} texts of up to {max(len(t.tokens) for t in group)} tokens do not fit into a KV "
                        f"cache of {self._cache.pages * PAGE} tokens and {self.most} texts; raise cache_tokens"
                    )
                slots.add(slot := self._cache.open())
                waiting.append(self._shared(list(zip(group, scores, strict=True)), dials, slot))
            while waiting:
                waiting = self._pass(waiting, slots)
        finally:
            for slot in slots:
                self._cache.close(slot)
        return found

    def _shared(self, group: list[tuple[Text, Score]], dials: Dials, slot: int) -> _Shared:
        """What all texts of a group begin with, and run alike."""
        texts = [text for text, _ in group]
        end, first = _alike(texts), min(texts, key=lambda text: text.start)
        tails = [pair for pair in group if len(pair[0].tokens) - 1 > end]
        return _Shared(self._known.row(*first, dials, slot), end, first.start - 1, group, tails)

    def _forked(self, span: _Shared, slots: set[int]) -> list[_Shared]:
        """The spans that follow a shared one; the last goes on in its slot."""
        spans, slot, source = [], span.row.slot, span.row
        assert slot is not None
        for i, (text, score) in enumerate(span.tails):
            own = slot
            if i + 1 < len(span.tails):
                slots.add(own := self._cache.fork(slot, span.end))
            row = self._known.row(*text, source.request.dials, own)
            row.note(0, source.ran_depths[: span.end], source.ran_costs[: span.end])
            row.computed = span.end
            spans.append(_Shared(row, len(text.tokens) - 1, max(span.end, text.start - 1), [(text, score)], []))
        return spans

    def _pass(self, waiting: list[_Shared], slots: set[int]) -> list[_Shared]:
        """Run the next tokens of the spans that wait, as far as their offsets are known; gives those that wait now."""
        for span in waiting:
            assert span.row.slot is not None
            grown = self._cache.grow(span.row.slot, span.row.computed, span.end) or span.row.computed == span.end
            assert grown, "pages were counted"
        for part in self._known.run(waiting):
            self._collect(part)
        ended = lambda span: span.row.computed == span.end  # noqa: E731
        return [span for one in waiting for span in (self._forked(one, slots) if ended(one) else [one])]

    def _collect(self, part: Part) -> None:
        """Give what a pass told to the texts it was for."""
        span = part.span
        assert isinstance(span, _Shared)
        _note(span.of[0], part.start, part.depths, part.costs)
        if part.logits is None:
            return
        logits = part.logits.float()
        likeliest, normal = logits.argmax(-1), logits.logsumexp(-1)
        if not normal.isfinite().all():
            raise ValueError("a text cannot be scored: its logits are not finite; look for nan in the weights")
        end = part.start + len(part.depths)
        first = end - len(logits)
        for text, score in span.of:
            skip = max(0, text.start - 1 - first)
            wanted = torch.tensor(text.tokens[first + skip + 1 : end + 1], device=logits.device)
            if len(wanted):
                runs = span.row.runs(first + skip, end)
                score.dense += sum(stop - start for start, stop, offset in runs if offset == math.inf)
                _add(score, logits[skip:], likeliest[skip:], normal[skip:], wanted)

    def _pages(self, group: Sequence[Text]) -> int:
        """Pages that a group takes at most."""
        shared = _alike(group)
        return pages_for(shared) + sum(pages_for(len(text.tokens)) - shared // PAGE for text in group)


def _alike(group: Sequence[Text]) -> int:
    """How many tokens all of a group begin with and run alike: what one writes and another reads is not shared."""
    texts, starts = [list(text.tokens[:-1]) for text in group], {text.start for text in group}
    low, high = min(texts), max(texts)  # what these two share, all share
    most = min(len(low), len(high), *(starts if len(starts) > 1 else ()))
    return next((i for i in range(most) if low[i] != high[i]), most)


def _note(pair: tuple[Text, Score], start: int, depths: Sequence[int], costs: Sequence[float]) -> None:
    text, score = pair
    cut = max(0, text.start - start)
    score.context = score.context.plus(depths[:cut], costs[:cut])
    score.scored = score.scored.plus(depths[cut:], costs[cut:])


def _add(score: Score, logits: Tensor, likeliest: Tensor, normal: Tensor, wanted: Tensor) -> None:
    """logits: fp32 [n, V] at the places before the tokens `wanted`, int64 [n]."""
    score.logprob += float((logits.gather(1, wanted[:, None])[:, 0] - normal).double().sum())
    score.greedy = score.greedy and bool((likeliest == wanted).all())
