"""D3: "Position-Aware Depth Decay Decoding" (Fan et al.; Findings of ACL 2025), arXiv 2503.08524.

Later tokens of an answer need fewer layers. The prompt runs all L of them; of the answer, token i = 0, 1, ... counted
from `start` on keeps

    n_i = floor(L alpha^i)          layers, and never fewer than the core

The core are the first and the last layers; the flexible ones between are dropped, the middle first, outwards. A layer
that is dropped for a token is dropped for all later ones of the answer, as n_i never rises and the order of dropping is
fixed. So nobody ever asks for a key that a dropped layer has not left, and nothing stands in for one. (The paper copies
a neighbouring layer's, which says that its sets are not nested; there is no code, and which layers it drops in which
order, we do not know.) Nothing is trained.

Ours: the order by block influence (ShortGPT); `start` in tokens, where the paper has a share of an answer whose length
nobody knows; the dial, in layers: n_i = floor(L alpha^i + offset); and two controls, of the same mean depth over the
first `length` tokens of an answer. "constant" has it everywhere. "reversed" runs the schedule backwards: its depth
rises, so that dropped layers leave K and V, which later tokens ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.lowered import Lowered
from depthdial.core.method import Method, Parts, Probe, Seen
from depthdial.core.program import Program, plain
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class D3(Method):
    """Depth falls along the answer, over nested sets of layers."""

    reads = frozenset({"position", "prompt"})
    by_row = True
    example: ClassVar[Mapping[str, object]] = {"alpha": 0.9, "first": 1, "last": 1}

    alpha: float = 0.995
    """What the depth is multiplied with at each token; 1 is the base. The paper searches it, and `start`, per task."""
    start: int = 0
    """Tokens of an answer before its depth begins to fall."""
    first: int = 2
    """Layers of the core at the bottom."""
    last: int = 2
    """Layers of the core at the top."""
    dropping: Literal["middle", "block_influence"] = "middle"
    """Which flexible layer goes first: the middle one, or the one that changes its input least."""
    order: tuple[int, ...] = ()
    """The flexible layers in the order in which they are dropped; filled by `calibrate` for "block_influence"."""
    schedule: Literal["decay", "constant", "reversed"] = "decay"
    length: int = 128
    """Tokens of an answer over which the controls have the schedule's mean depth."""

    def __post_init__(self):
        object.__setattr__(self, "order", tuple(self.order))  # JSON gives lists
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, not {self.alpha}")
        if self.dropping not in ("middle", "block_influence"):
            raise ValueError(f"dropping must be 'middle' or 'block_influence', not {self.dropping!r}")
        if self.schedule not in ("decay", "constant", "reversed"):
            raise ValueError(f"schedule must be 'decay', 'constant' or 'reversed', not {self.schedule!r}")
        if min(self.start, self.first, self.last) < 0 or self.length < 1:
            raise ValueError("start, first and last must not be below 0, and length must be at least 1")
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"order names a layer twice: {self.order}")

    def program(self, depth: int) -> Program:
        flexible = range(self.first, depth - self.last)
        if not flexible:
            raise ValueError(f"a core of {self.first} and {self.last} layers leaves none of {depth} to drop")
        if self.order and sorted(self.order) != list(flexible):
            raise ValueError(f"order {self.order} is not one of layers {flexible[0]} to {flexible[-1]}")
        return plain(depth, flexible, absent="project" if self.schedule == "reversed" else "nothing")

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        program = trace.program
        dropped = self._order(program).index(program.steps[s].block)
        return Decision.hard(self._layers(program, tokens) + dropped >= len(program.steps))

    def keeps(self, program: Program, tokens: Tokens) -> Tensor:
        order = self._order(program)
        dropped = torch.tensor([order.index(program.steps[s].block) for s in program.routed])
        return self._layers(program, tokens) + dropped.to(tokens.offset.device)[:, None] >= len(program.steps)

    def lowered(self, parts: Parts, s: int) -> Lowered:
        return Lowered(None)

    def calibrate(self, probe: Probe, report: Callable[[str], None] = lambda _: None) -> D3:
        if self.dropping == "middle" or self.order:
            return self
        influence = probe.block_influence()
        flexible = range(self.first, probe.depth - self.last)
        return replace(self, order=tuple(sorted(flexible, key=influence.__getitem__)))

    def _layers(self, program: Program, tokens: Tokens) -> Tensor:
        """n_i of each token, float64 [N], by the dial and not yet held to the core; all L in a prompt."""
        depth, place = len(program.steps), tokens.answer
        if self.schedule == "constant":
            n = self._decayed(depth, torch.arange(self.length)).floor().mean().round()
        else:
            n = self._decayed(depth, place if self.schedule == "decay" else self.length - 1 - place)
        return torch.where(place < 0, float(depth), (n + tokens.offset).floor())

    def _decayed(self, depth: int, place: Tensor) -> Tensor:
        """L alpha^i of places within an answer, float64 [N]; L before `start`."""
        return depth * torch.pow(self.alpha, (place - self.start).clamp_min(0).double())

    def _order(self, program: Program) -> Sequence[int]:
        """The flexible layers in the order in which they are dropped."""
        if self.order:
            return self.order
        if self.dropping == "block_influence":
            raise ValueError(
                "d3's order of dropping is not known yet: calibrate the method, or set dropping to 'middle'"
            )
        flexible = range(self.first, len(program.steps) - self.last)
        return sorted(flexible, key=lambda layer: abs(2 * layer - flexible[0] - flexible[-1]))
