"""A prompt on its way through generation: the request, and the row of each of its samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from depthdial.core.dial import Dials
from depthdial.core.hold import BLOCK
from depthdial.engine.dials import Held, runs
from depthdial.engine.output import Finish, Piece, RequestOutput, Sample
from depthdial.engine.prefix import first_key, next_key
from depthdial.engine.sampling import SamplingParams, draw_key
from depthdial.engine.text import TextStream
from depthdial.kernels.tensors import PAGE


@dataclass(eq=False)
class Request:
    """A checked prompt: everything its samples have in common. Its handle in `LLM.cancel`."""

    prompt: str | None
    token_ids: list[int]
    params: SamplingParams
    seed: int
    dials: Dials
    """The dial's logit offsets for its prompt and for what is written."""
    limit: int
    """Most tokens to generate: `max_tokens`, or what the context leaves."""
    facts: bytes = b""
    """What its K and V depend on beside the tokens and the dials (see `key`)."""
    draft_offset: float = math.inf
    """Lossless: the dial's offset for drafts; `inf` drafts from the text alone."""
    draft_cost: float = 1.0
    """Lossless: the true cost to expect of a draft's token."""
    target: float | None = None
    """True cost that generated tokens should have on the mean; None where nobody says."""
    moving: bool = False
    """Does the offset of what is written follow the engine's own dial (`auto`)?"""
    steady: bool = False
    """Does it stay where it is once a row has begun? Where skipped tokens leave no K and V, tokens that come after a
    layer is back would read what nobody wrote."""
    cached_tokens: int = 0
    """Prompt tokens that an equal beginning had left in the cache."""
    prompt_logprobs: list[dict[int, float]] = field(default_factory=list)
    """Of the prompt's tokens but the first, as far as they have run; where `params` ask for them."""
    rows: list[Row] = field(default_factory=list)
    """One per sample, once it is submitted."""

    @property
    def done(self) -> bool:
        return all(row.finish_reason is not None for row in self.rows)

    @property
    def unscored(self) -> bool:
        """Are log-probabilities of its prompt asked for, and not all there?"""
        return self.params.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.token_ids) - 1

    @property
    def begun(self) -> bool:
        """Has any of its rows run, or is about to?"""
        return any(row.slot is not None or row.ran_depths for row in self.rows)

    @property
    def key(self) -> bytes:
        """The start of the hash chain of its pages (see `prefix`): of those of a prompt that is read in full the same
        whatever is written after it."""
        return first_key(self.facts, self._writing if self.dials.read is None else self.dials.read)

    @property
    def written_key(self) -> bytes | None:
        """What K and V of written tokens depend on beside all tokens before; None: on no more than those of its prompt.

        Held offsets follow from the tokens and from what is to be held.
        """
        if self.dials.alike and (self.dials.read is None or not self.moving):
            return None
        return first_key("written", self._writing, self.dials.hold)

    @property
    def _writing(self) -> float | str:
        return "moving" if self.moving and not self.steady else self.dials.written

    def output(self) -> RequestOutput:
        """What came of it. All its rows must be done."""
        count = len(self.token_ids)
        first = max(self.rows, key=lambda row: len(row.ran_depths))
        depths, costs = first.ran_depths[:count], first.ran_costs[:count]
        cost = sum(costs) / len(costs) if costs else math.nan
        logprobs = None if self.params.prompt_logprobs is None else self.prompt_logprobs
        return RequestOutput(self.prompt, self.token_ids, depths, cost, [row.result() for row in self.rows], logprobs)


class Row:
    """One sample being generated: a row of the batch."""

    def __init__(self, request: Request, sample: int, tokenizer: Any):
        self.request, self.sample = request, sample
        self.tokens: list[int] = list(request.token_ids)
        """The prompt and the continuation."""
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, float]] = []
        self.ran_depths: list[int] = []
        """Layers run for each token that has run, by place in the text."""
        self.ran_costs: list[float] = []
        self.layers: list[bytes] = []
        """Which layers ran in the pass that gave each of `token_ids` (see `Piece`)."""
        self.slot: int | None = None
        """Where the scheduler put it; None while it waits."""
        self.computed = 0
        """Tokens whose K and V are in the cache."""
        self.keys: list[bytes] = []
        """Of its full pages, in order."""
        hold = request.dials.hold
        self._held = None if hold is None else Held(hold)
        self.finish_reason: Finish | None = None
        self.error: str | None = None
        self._text = TextStream(tokenizer, request.token_ids, request.params.stops)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the continuation together."""
        return len(self.tokens)

    @property
    def prompt_done(self) -> bool:
        """Has the whole prompt run?"""
        return self.computed >= len(self.request.token_ids)

    @property
    def horizon(self) -> float:
        """Before which place the tokens' offsets are known: what is written after it follows from what runs before."""
        return math.inf if self._held is None else len(self.request.token_ids) + BLOCK * len(self._held.offsets)

    def offset(self, place: int) -> float:
        """The dial of the token at a place."""
        request = self.request
        before = place - len(request.token_ids)
        if before < 0:
            return request.dials.reading
        return request.dials.written if self._held is None else self._held.offsets[before // BLOCK]

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, float]]:
        """The places start..end-1, before the horizon, in parts of one offset each: (start, end, offset)."""
        return runs(self.request.dials, self._held, len(self.request.token_ids), start, end)

    @property
    def depths(self) -> list[int]:
        """Layers run in the pass that gave each of `token_ids`."""
        first = len(self.request.token_ids) - 1
        return self.ran_depths[first : first + len(self.token_ids)]

    @property
    def costs(self) -> list[float]:
        """True cost of the pass that gave each of `token_ids`."""
        first = len(self.request.token_ids) - 1
        return self.ran_costs[first : first + len(self.token_ids)]

    def draw(self, place: int) -> int:
        """The key of the draw of the token at a place in the text; what is greedy draws nothing."""
        return draw_key(self.request.seed, self.sample, place) if self.request.params.temperature else 0

    def chain(self, roles: bool = False) -> list[bytes]:
        """The keys of its pages that could come from the cache: at least its last token must run. roles: see
        `Runner.roles`."""
        keys: list[bytes] = []
        for first in range(0, (self.length - 1) // PAGE * PAGE, PAGE):
            keys.append(self.page_key(first, keys[-1] if keys else self.request.key, roles))
        return keys

    def page_key(self, first: int, before: bytes, roles: bool) -> bytes:
        """The key of the page of places `first` on; before: that of the page before it."""
        read, written = max(len(self.request.token_ids) - first, 0), self.request.written_key
        apart = read < PAGE and (roles or written is not None)
        return next_key(before, self.tokens[first : first + PAGE], read if apart else None, written)

    def note(self, start: int, depths: Sequence[int], costs: Sequence[float]) -> None:
        """Tokens from place `start` on have run. What ran before (and was preempted) keeps its first figures."""
        known = len(self.ran_depths) - start
        assert known >= 0, "no place is left out"
        self.ran_depths += depths[known:] if known else depths
        self.ran_costs += costs[known:] if known else costs
        if self._held is not None and len(self.ran_costs) >= self.horizon:
            self._held.see(self.ran_costs[len(self.request.token_ids) :])

    def push(self, token: int, ends: frozenset[int]) -> None:
        """Take the next token and see whether it is the last."""
        self.tokens.append(token)
        self.token_ids.append(token)
        if self._text.push(token) or (token in ends and not self.request.params.ignore_eos):
            self.end("stop")
        elif len(self.token_ids) >= self.request.limit:
            self.end("length")

    def end(self, reason: Finish, error: str | None = None) -> None:
        """No token follows."""
        self._text.close()  # a thread that sees the reason gives out what is ready, and looks no more
        self.error = error
        # what was held back for half a character's sake may have held a stop string
        self.finish_reason = "stop" if reason == "length" and self._text.stopped else reason

    def pieces(self, first: int = 0) -> list[Piece]:
        """The tokens from `first` on whose text is final."""
        last, before = self._text.ready, len(self.request.token_ids) - 1
        columns = (
            self._text.pieces[first:last],
            self.token_ids[first:last],
            self.ran_depths[before + first : before + last],
            self.ran_costs[before + first : before + last],
            self.layers[first:last],
        )
        return [Piece(*row) for row in zip(*columns, strict=True)]

    def result(self) -> Sample:
        """The finished sample."""
        assert self.finish_reason is not None
        logprobs = self.logprobs if self.request.params.logprobs is not None else None
        return Sample(self.pieces(), self.finish_reason, logprobs, self.error)
