"""Soft gates (Highway networks, Srivastava et al., 2015, arXiv 1505.00387): a baseline of SkipLayer's paper.

One layer, F the whole block with its residual stream and x: [B, T, d] its input:

    g = sigmoid(w norm(x))              one gate per token, no bias
    y = g F(x) + (1 - g) x              transform and carry

Every token runs every layer, so nothing is saved: what it shows is how much of a router's gain is the gate alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from depthdial.core.decision import Decision
from depthdial.core.layers import LinearRouter
from depthdial.core.method import Dims, Method, Parts, Seen, span
from depthdial.core.program import Program, Step, plain
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class Highway(Method):
    """A soft gate per layer on the block's update; never skips."""

    frozen = False

    first: int | None = 0
    """First gated layer; None is the upper half."""
    last: int | None = None
    """One past the last gated layer; None is the top."""
    but: tuple[int, ...] = ()
    """Layers of that span without a gate."""
    fixed_input: bool = False
    """Whether routers are fed ones in place of their input: the control that cannot see the token (ours)."""

    def __post_init__(self):
        object.__setattr__(self, "but", tuple(self.but))  # JSON gives lists

    def program(self, depth: int) -> Program:
        return plain(depth, span(self.first, self.last, self.but, depth), routed="weigh")

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        return {"router": LinearRouter(dims.hidden, classes=1, fixed=self.fixed_input)}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        g = tokens.shifted(parts["router"](seen.x)).sigmoid()
        # the carry's weight, 1 - g, is in the residual form of the executor: x + g (F(x) - x)
        return Decision(torch.ones_like(g, dtype=torch.bool), g, torch.zeros_like(g), g)

    @property
    def target(self) -> float:
        return 1.0
