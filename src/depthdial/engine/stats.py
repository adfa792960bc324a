"""What the engine did, counted where it happens: rows and layers that ran, bytes that were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Source = Literal["lookup", "model"]
"""Where drafts come from: an earlier place in the text, or the plug-in."""


def _none() -> dict[Source, int]:
    return {"lookup": 0, "model": 0}


@dataclass
class Speculation:
    """What lossless mode did."""

    rounds: int = 0
    """Passes of the base over a row that decodes in lossless mode, with drafts or without."""
    tokens: int = 0
    """Tokens those rows got from them."""
    verified_rounds: dict[Source, int] = field(default_factory=_none)
    """Rounds that had drafts, by where those came from."""
    drafted: dict[Source, int] = field(default_factory=_none)
    """Tokens drafted and verified."""
    accepted: dict[Source, int] = field(default_factory=_none)
    draft_passes: int = 0
    """Tokens that the plug-in ran for drafts."""
    draft_cost: float = 0.0
    """Their true cost in dense tokens."""

    def round(self, tokens: int) -> None:
        self.rounds += 1
        self.tokens += tokens

    def verified(self, source: Source, drafted: int, accepted: int) -> None:
        self.verified_rounds[source] += 1
        self.drafted[source] += drafted
        self.accepted[source] += accepted

    def drafts(self, cost: float) -> None:
        self.draft_passes += 1
        self.draft_cost += cost

    @property
    def ideal_speedup(self) -> float:
        """Over one pass a token, by bytes of weights: a round reads them once, however many tokens it verifies."""
        spent = self.rounds + self.draft_cost
        return self.tokens / spent if spent else 1.0


@dataclass
class Stats:
    """Sums over all passes since the engine was made."""

    layers: int
    passes: int = 0
    tokens: int = 0
    """Tokens that ran, of prompts and of continuations."""
    in_torch: str | None = None
    """Why all passes run in PyTorch, several times slower: what native kernels or CUDA graphs cannot do here; None
    where they do run."""
    open_steps: int = 0
    """Steps of native passes that Python decides, as the method does not say in operations what it does there."""
    native_tokens: int = 0
    """Those of them that native kernels ran."""
    read_tokens: int = 0
    """Those of them that belong to prompts."""
    read_cost: float = 0.0
    """Their true cost in dense tokens."""
    written_tokens: int = 0
    """Tokens of continuations that ran; in lossless mode those that were right, and none that drafted."""
    written_cost: float = 0.0
    """Their true cost in dense tokens; in lossless mode that of the rounds that gave them, with the drafts."""
    cached_tokens: int = 0
    """Tokens that did not run, because an equal beginning was in the cache."""
    preemptions: int = 0
    """How often a row lost its pages and had to be computed again."""
    rows: np.ndarray = field(init=False)
    """Tokens for which each layer ran, or a part of it."""
    attn_rows: np.ndarray = field(init=False)
    """Tokens for which each layer's attention ran (Q, the keys, O)."""
    mlp_rows: np.ndarray = field(init=False)
    adapter_rows: np.ndarray = field(init=False)
    """Tokens whose bypass ran, by layer."""
    kv_rows: np.ndarray = field(init=False)
    """Tokens whose K and V were computed, by layer."""
    padded_rows: int = 0
    """Rows computed for nothing, by rounding row counts up."""
    layers_run: int = 0
    """Layers run for at least one token of a pass, summed over passes."""
    weight_bytes: int = 0
    """Bytes of weights read, once for each pass that used them."""
    kv_bytes: int = 0
    """Bytes of K and V read by attention."""
    speculation: Speculation = field(default_factory=Speculation)

    def __post_init__(self):
        for name in ("rows", "attn_rows", "mlp_rows", "adapter_rows", "kv_rows"):
            setattr(self, name, np.zeros(self.layers, dtype=np.int64))

    def ran(self, read: int, costs: Sequence[float]) -> None:
        """Consecutive tokens of a text have run. read: how many of the first ones belong to the prompt, at least."""
        if not read:
            self.written_tokens += len(costs)
            self.written_cost += sum(costs)
            return
        self.ran(0, costs[read:])
        self.read_tokens += len(costs[:read])
        self.read_cost += sum(costs[:read])

    @property
    def rows_run(self) -> int:
        """Tokens times layers that ran for them: the sum of all keeps."""
        return int(self.rows.sum())
