"""Relaxed Recursive Transformers (Bae et al., ICLR 2025, arXiv 2410.20672): blocks that are visited several times, each
visit with a low-rank change of its own.

h <- f(h; W_b + up down) for each visit of block b: the blocks in order, and that again for every loop. A token may stop
at the end of a loop and goes on after the loops. `depthdial retrofit` makes such a model from a base of L layers: L /
loops blocks, the changes by truncated SVD of what each layer differs from its block. All loops are the untouched base.

Choices: an exit belongs to a row, by the dial (offset +1 is one loop more), so that no later loop misses the K and V of
an earlier token, and what is not run costs nothing; each visit has cache rows of its own; norms are shared. The paper's
speed assumes an oracle for its exits; a readout at the end of a loop is a method of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from depthdial.core.decision import Decision
from depthdial.core.layers import LoRA
from depthdial.core.lowered import Lowered
from depthdial.core.method import Dims, LowRank, Method, Parts, Seen
from depthdial.core.program import END, Program, Step
from depthdial.core.tokens import Tokens, Trace

PROJ = "_proj"
"""Parts go without it: who asks for the base's maps by name (a LoRA of peft) means none of them."""


@dataclass(frozen=True)
class Recursive(Method):
    """The blocks first..last-1 are run `loops` times."""

    reads = frozenset()
    by_row = True
    example: ClassVar[Mapping[str, object]] = {"loops": 3, "first": 2, "last": 4, "stop": 2, "rank": 2}

    loops: int = 2
    first: int | None = None
    """First block of the loop; None is the bottom."""
    last: int | None = None
    """One past the last block of the loop; None is the top."""
    rank: int = 0
    """Of each visit's own change of each of its linear maps, or what a smaller map has; 0 is none: plain recursion."""
    stop: int | None = None
    """Loops that are run at offset 0; None is all."""

    def __post_init__(self):
        if self.loops < 2:
            raise ValueError(f"loops must be at least 2, not {self.loops}")
        if self.rank < 0:
            raise ValueError(f"rank must be at least 0, not {self.rank}")
        if self.stop is not None and not 1 <= self.stop <= self.loops:
            raise ValueError(f"stop must be one of 1 to {self.loops} loops, not {self.stop}")

    def program(self, depth: int) -> Program:
        begin, end = self.first or 0, depth if self.last is None else self.last
        if not 0 <= begin < end <= depth:
            raise ValueError(f"a loop over blocks {begin} to {end - 1} does not fit a model of {depth} layers")
        size = end - begin
        after = END if end == depth else begin + self.loops * size
        steps = [Step(block) for block in range(begin)]
        for loop in range(self.loops):
            for block in range(begin, end):
                exits = loop > 0 and block == begin
                steps.append(
                    Step(
                        block,
                        routed="skip" if exits else "no",
                        otherwise=after if exits else None,
                        absent="nothing" if loop else "project",
                        relaxed=self.rank > 0,
                    )
                )
        return Program((*steps, *(Step(block) for block in range(end, depth))))

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        if not step.relaxed:
            return {}
        sizes = {name.removesuffix(PROJ): size for name, size in dims.linears.items()}
        return {name: LoRA(*size, min(self.rank, *size)) for name, size in sizes.items()}

    def delta(self, parts: Parts, s: int) -> Mapping[str, LowRank]:
        return {f"{name}{PROJ}": LowRank(part.down, part.up) for name, part in parts.items() if isinstance(part, LoRA)}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        steps = trace.program.steps
        loop = sum(step.block == steps[s].block for step in steps[:s])
        logit = torch.full_like(tokens.offset, (self.stop or self.loops) - loop - 0.5)
        return Decision.hard(tokens.shifted(logit) > 0)

    def stops(self, program: Program) -> Sequence[float]:
        return [loops - (self.stop or self.loops) for loops in range(1, self.loops + 1)]

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        return Lowered(None)
