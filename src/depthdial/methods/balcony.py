"""Balcony: "A Lightweight Approach to Dynamic Inference of Generative Language Models" (Jamialahmadi et al.;
EMNLP 2025), arXiv 2503.05005.

The base is frozen, and bit for bit itself at full depth. Each exit e of a set E has one decoder block B_e of its own
(attention, MLP and both norms), with keys and values of its own; h^e: [B, T, d] is the stream after e layers, N and W
are the base's last norm and its head, shared by all exits:

    z_e = B_e(h^e)                      causal attention over the h^e of all places
    p_e = softmax(W N(z_e))             layers above e do not run and leave neither K nor V
    loss = mean over e of KL(p || p_e)  p of the full base; per token, where the released code divides by rows alone

B_e begins as a copy of the last layer with the input norm of layer e, which knows the scale of h^e. A deployment or a
request chooses its exit, and a text keeps it: nothing could make up for the keys that it has not left.

Ours: the dial chooses the exit. As nothing but such exits is decided (`Program.branches`), whoever trains knows that
one pass of the base teaches all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from depthdial.core.decision import Decision
from depthdial.core.lowered import Lowered
from depthdial.core.method import Method, Parts, Seen
from depthdial.core.program import END, OwnBlock, Program, Step
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class Balcony(Method):
    """Exits at listed layers, each through a block of its own; a text takes one of them, or none."""

    reads = frozenset()
    by_row = True
    example: ClassVar[Mapping[str, object]] = {"exits": (2, 4), "stop": 1}

    exits: tuple[int, ...] = ()
    """How many layers of the base run before each exit; () are 2/5, 8/15, 2/3, 4/5 and 9/10 of them (ours; the paper
    has 15, 18 and 21 of 32, or 4, 8 and 12 of 16)."""
    stop: int | None = None
    """Which of the exits, counted from 0, is taken at offset 0; offset +1 takes the next, and the one after the last is
    the full base. None is the middle one."""

    def __post_init__(self):
        object.__setattr__(self, "exits", tuple(self.exits))  # JSON gives lists
        if list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits must rise, each named once, not {self.exits}")
        if self.stop is not None and not 0 <= self.stop <= (len(self.exits) or 5):
            raise ValueError(f"stop names the exit taken at offset 0, counted from 0, and there is no {self.stop}")

    def program(self, depth: int) -> Program:
        exits = self.exits or tuple(sorted({max(1, depth * k // 30) for k in (12, 16, 20, 24, 27)}))
        if not 0 < exits[0] <= exits[-1] < depth:
            raise ValueError(f"exits after {exits} layers do not fit a model of {depth} layers")
        steps: list[Step] = []
        for layer in range(depth):
            if layer in exits:
                block = -1 - exits.index(layer)
                steps.append(Step(block, routed="skip", then=END, absent="nothing", base=False))
            steps.append(Step(layer, absent="nothing" if layer >= exits[0] else "project"))
        return Program(tuple(steps), tuple(OwnBlock(copy=depth - 1, place=layer) for layer in exits))

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        exit = -1 - trace.program.steps[s].block
        onward = tokens.offset + (self._stop(trace.program) - exit - 0.5)
        return Decision.hard(onward <= 0)

    def stops(self, program: Program) -> Sequence[float]:
        return [exit - self._stop(program) for exit in range(len(program.own) + 1)]

    def lowered(self, parts: Parts, s: int) -> Lowered:
        return Lowered(None)

    def _stop(self, program: Program) -> int:
        return len(program.own) // 2 if self.stop is None else self.stop
