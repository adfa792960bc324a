"""What comes back for a prompt: its samples, token by token, with depths and costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from depthdial.engine.notebook import html

Finish = Literal["stop", "length", "cancelled", "error"]
"""How a text ended. "stop": an end token (it is the last of `token_ids`) or a stop string; "length": `max_tokens` or
the context; "cancelled": by the caller; "error": its pass failed."""


class Piece(NamedTuple):
    """One generated token as it is streamed."""

    text: str
    """What the token adds to the text; may be empty (half a character, a special token)."""
    token_id: int
    depth: int
    """Layers run in the pass whose logits gave the token."""
    cost: float
    """True cost of that pass relative to dense. In lossless mode what the round cost that gave the token, over the
    tokens it gave: one reading of the weights by the base, and the passes that drafted."""
    layers: bytes = b""
    """Which layers ran in that pass, a bit for each, the first layer's the highest; empty: all of them."""


@dataclass(frozen=True, repr=False)
class Sample:
    """One continuation of a prompt."""

    pieces: list[Piece]
    """One per token; their texts joined are `text`."""
    finish_reason: Finish
    logprobs: list[dict[int, float]] | None = None
    """Per token, when asked for: log-probabilities by token id, of the chosen and of the likeliest tokens."""
    error: str | None = None
    """What went wrong, where `finish_reason` is "error"."""

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
        """Mean true cost, relative to dense, of the passes over written tokens; nan if there are none.

        The first piece came from the prompt's last token, which counts as read (`prompt_cost`); it counts here only
        where it is all there is. The last token never runs.
        """
        written = self.pieces[1:] or self.pieces
        return sum(piece.cost for piece in written) / len(written) if written else math.nan

    def __repr__(self) -> str:
        text = shortened(self.text)
        return f"Sample({text}, {len(self.pieces)} tokens, cost {self.cost:.3f}, {self.finish_reason})"


@dataclass(frozen=True, repr=False)
class RequestOutput:
    """What one prompt gave. `text`, `token_ids`, `depths`, ... are those of the first sample."""

    prompt: str | None
    """The prompt as text; None when it was given as tokens."""
    prompt_token_ids: list[int]
    prompt_depths: list[int]
    """Layers run for each prompt token."""
    prompt_cost: float
    """Mean true cost of the prompt's tokens relative to dense, as they ran when they ran; nan if none did."""
    samples: list[Sample]
    """All `n` samples."""
    prompt_logprobs: list[dict[int, float]] | None = None
    """Of each prompt token but the first, when asked for: log-probabilities by token id, as in `Sample.logprobs`."""

    def __repr__(self) -> str:
        return f"RequestOutput({', '.join(map(repr, self.samples))})"

    def _repr_html_(self) -> str:
        """As a notebook shows it: the text, coloured by depth."""
        return html(self)

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
    def finish_reason(self) -> Finish:
        return self.samples[0].finish_reason

    @property
    def error(self) -> str | None:
        return self.samples[0].error

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        return self.samples[0].logprobs


def shortened(text: str, most: int = 60) -> str:
    """The text as Python writes it, cut in the middle where it is long."""
    half = most // 2
    return repr(text if len(text) <= most else f"{text[:half]} ... {text[-half:]}")
