"""A prompt on its way through generation, and what comes back for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from depthdial.engine.sampling import SamplingParams, draw_key
from depthdial.engine.text import TextStream


class Piece(NamedTuple):
    """One generated token as it is streamed."""

    text: str
    """What the token adds to the text; may be empty (half a character, a special token)."""
    token_id: int
    depth: int
    """Layers run in the pass whose logits gave the token."""
    cost: float
    """True cost of that pass relative to dense."""


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt."""

    pieces: list[Piece]
    """One per token; their texts joined are `text`."""
    finish_reason: Literal["stop", "length"]
    """"stop": an end token (it is the last of `token_ids`) or a stop string; "length": `max_tokens` or the context."""
    logprobs: list[dict[int, float]] | None = None
    """Per token, when asked for: log-probabilities by token id, of the chosen and of the likeliest tokens."""

    @property
    def text(self) -> str:
        """The continuation, without special tokens and without the stop string."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def token_ids(self) -> list[int]:
        """The tokens, with the one that ended the text."""
        return [piece.token_id for piece in self.pieces]

    @property
    def depths(self) -> list[int]:
        """Layers run in the pass whose logits gave token i: `depths[0]` is that of the prompt's last token."""
        return [piece.depth for piece in self.pieces]

    @property
    def cost(self) -> float:
        """Mean true cost, relative to dense, of the passes that gave the tokens."""
        return sum(piece.cost for piece in self.pieces) / len(self.pieces)


@dataclass(frozen=True)
class RequestOutput:
    """What one prompt gave. `text`, `token_ids`, `depths`, ... are those of the first sample."""

    prompt: str | None
    """The prompt as text; None when it was given as tokens."""
    prompt_token_ids: list[int]
    prompt_depths: list[int]
    """Layers run for each prompt token."""
    prompt_cost: float
    """Mean true cost of the prompt's tokens relative to dense."""
    samples: list[Sample]
    """All `n` samples."""

    @property
    def text(self) -> str:
        return self.samples[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.samples[0].token_ids

    @property
    def depths(self) -> list[int]:
        return self.samples[0].depths

    @property
    def cost(self) -> float:
        return self.samples[0].cost

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        return self.samples[0].finish_reason

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        return self.samples[0].logprobs


@dataclass
class Request:
    """A checked prompt: everything its samples have in common."""

    prompt: str | None
    token_ids: list[int]
    params: SamplingParams
    seed: int
    offset: float
    """The dial's logit offset for this request."""
    limit: int
    """Most tokens to generate: `max_tokens`, or what the context leaves."""
    depths: list[int] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


class Row:
    """One sample being generated: a row of the batch."""

    def __init__(self, request: Request, sample: int, tokenizer: Any):
        self.request, self.sample = request, sample
        self.token_ids: list[int] = []
        self.depths: list[int] = []
        self.costs: list[float] = []
        self.logprobs: list[dict[int, float]] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self._text = TextStream(tokenizer, request.token_ids, request.params.stops)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the continuation together."""
        return len(self.request.token_ids) + len(self.token_ids)

    @property
    def key(self) -> int:
        """The key of the next draw."""
        return draw_key(self.request.seed, self.sample, self.length)

    def push(self, token: int, depth: int, cost: float, ends: frozenset[int]) -> None:
        """Take the next token, with the depth and cost of the pass that gave it, and see whether it is the last."""
        self.token_ids.append(token)
        self.depths.append(depth)
        self.costs.append(cost)
        if self._text.push(token) or (token in ends and not self.request.params.ignore_eos):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.request.limit:
            self.finish_reason = "length"
        if self.finish_reason:
            self._text.close()

    def pieces(self, first: int = 0) -> list[Piece]:
        """The tokens from `first` on whose text is final."""
        columns = (self._text.pieces, self.token_ids, self.depths, self.costs)
        return [Piece(*row) for row in zip(*(c[first : self._text.ready] for c in columns), strict=True)]

    def result(self) -> Sample:
        """The finished sample."""
        assert self.finish_reason is not None
        logprobs = self.logprobs if self.request.params.logprobs is not None else None
        return Sample(self.pieces(), self.finish_reason, logprobs)
