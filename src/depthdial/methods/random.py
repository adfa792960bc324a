"""Random skipping at a given rate: the baseline that shows whether a router has learned anything.

Whether a layer runs is drawn from (seed, layer, position, token), in training from a key of the row instead of the
token, never from the batch: a row draws the same alone and in company, and two texts share a coin only where both have
the same token at the same place. Adapters train under this route like a router's do under its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.draws import drawn, drawn_at_once
from depthdial.core.layers import Adapter
from depthdial.core.lowered import Lowered, adapter_in
from depthdial.core.method import Dims, Method, Parts, Seen, span
from depthdial.core.program import Program, Step, plain
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class Random(Method):
    """Each routed layer runs with probability `rate`, on its own for each layer and token."""

    reads = frozenset({"position", "id", "key"})
    example: ClassVar[Mapping[str, object]] = {"first": 2, "adapter_ratio": 4, "rate": 0.6}

    first: int | None = None
    """First routed layer; None is the upper half."""
    last: int | None = None
    """One past the last routed layer; None is the top."""
    but: tuple[int, ...] = ()
    """Layers of that span that always run all the same (ours: a base may have one it cannot do without)."""
    rate: float = 0.75
    """Share of routed layers a token runs at offset 0."""
    adapter_ratio: int = 16
    """The adapter's width is d_ff / adapter_ratio; 0 is no adapter: a bare skip."""
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "but", tuple(self.but))  # JSON gives lists
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must lie between 0 and 1, not {self.rate}")

    def program(self, depth: int) -> Program:
        return plain(depth, span(self.first, self.last, self.but, depth), ("attn", "mlp"))

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        if step.unit == "attn" or not self.adapter_ratio:
            return {}
        return {"adapter": Adapter(dims.hidden, max(1, dims.intermediate // self.adapter_ratio))}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        if trace.program.steps[s].unit == "mlp":
            return trace.decisions[s - 1]
        score = self._score(tokens)
        return Decision.hard(drawn(self.seed, trace.program, s, tokens) < score, score)

    def keeps(self, program: Program, tokens: Tokens) -> Tensor:
        return drawn_at_once(self.seed, program, tokens) < self._score(tokens)

    def _score(self, tokens: Tokens) -> Tensor:
        """The dial's share of tokens that run, fp32 [N]."""
        return tokens.shifted(torch.full_like(tokens.offset, math.log(self.rate / (1 - self.rate)))).sigmoid()

    @property
    def target(self) -> float:
        return self.rate

    def bypass(self, parts: Parts, x: Tensor, s: int) -> Tensor | None:
        return parts["adapter"](x) if "adapter" in parts else None

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        return Lowered(None, bypass=adapter_in(parts))
