"""The base model itself: nothing is routed. The first baseline every paper must stand beside."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from depthdial.core.decision import Decision
from depthdial.core.method import Method, Parts, Seen
from depthdial.core.program import Program, plain
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class Dense(Method):
    """Every layer runs for every token."""

    reads = frozenset()

    def program(self, depth: int) -> Program:
        return plain(depth)

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        return Decision.hard(torch.ones_like(tokens.full))

    @property
    def target(self) -> float:
        return 1.0
