"""What a token costs: multiply-accumulates of linear weights by step.

"Cost" and "budget" mean one thing everywhere (README, "What the budget means"): executed over dense
multiply-accumulates of linear weights per token, with the LM head, K/V projections, folded routers, adapters and heads
that a decision looks at counted. At batch 1 this is the share of weight bytes read, too. Attention over the context and
bytes of K and V are `core.work`'s, never mixed in. Prices are here and nowhere else; executors count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthdial.core.program import Program
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class LayerWork:
    """Multiply-accumulates of one layer for one token, and the sizes its attention over the context depends on."""

    kv: int
    """K and V projections."""
    attn: int
    """Q and output projections."""
    mlp: int
    attend: int
    """Multiply-accumulates per attended key (scores and values): 2 * query heads * head size."""
    kv_width: int
    """Numbers one token leaves in this layer's cache: 2 * key heads * head size."""
    window: int | None = None
    """Sliding window, tokens; None attends to the whole context."""

    @property
    def total(self) -> int:
        return self.kv + self.attn + self.mlp

    def of(self, unit: str) -> LayerWork:
        """The part that is the layer's attention or its MLP; all of it for "layer"."""
        if unit == "attn":
            return replace(self, mlp=0)
        return replace(self, kv=0, attn=0, attend=0, kv_width=0) if unit == "mlp" else self


@dataclass(frozen=True)
class StepWork:
    """The price list of one step, in multiply-accumulates for one token."""

    unit: LayerWork
    """Of the unit itself; 0 where it is not part of it."""
    look: int = 0
    """Of a token that waits here: the folded router, and the head that it is shown."""
    bypass: int = 0
    """Of a token that waits here and does not run the step."""
    absent: int = 0
    """Of any token that does not run it: its K and V, where it leaves them."""

    @property
    def saved(self) -> int:
        """What one skip saves: negative when the bypass costs more than the unit."""
        return self.unit.total - self.absent - self.bypass


@dataclass(frozen=True)
class Ledger:
    """The price list of a converted model, in multiply-accumulates per token."""

    program: Program
    steps: tuple[StepWork, ...]
    head: int

    @property
    def dense(self) -> int:
        """Multiply-accumulates per token of the untouched base."""
        pairs = zip(self.program.steps, self.steps, strict=True)
        return self.head + sum(work.unit.total for step, work in pairs if step.base)

    @property
    def untouched(self) -> float:
        """Cost of a token of the untouched base: 1, and beyond that the K and V which it leaves at visits that the base
        does not make, for tokens that make them."""
        pairs = zip(self.program.steps, self.steps, strict=True)
        return (self.dense + sum(work.absent for step, work in pairs if not step.base)) / self.dense

    @property
    def layers(self) -> tuple[LayerWork, ...]:
        """The layer of each visit."""
        parts = ([self.steps[s].unit for s in visit.steps] for visit in self.program.visits)
        return tuple(
            units[0] if len(units) == 1 else replace(units[0], mlp=units[0].mlp + units[1].mlp) for units in parts
        )

    @property
    def saved(self) -> tuple[int, ...]:
        """What one skip saves at each visit, all of its decisions together."""
        may = set(self.program.routed) if self.program.skips else set()
        return tuple(sum(self.steps[s].saved for s in visit.steps if s in may) for visit in self.program.visits)

    @property
    def floor(self) -> float:
        """Cost of a token on its cheapest way through the program."""
        steps, count = self.program.steps, len(self.steps)
        cheapest = [0] * (count + 1)

        def onward(s: int, ran: bool) -> int:
            to = min(self.program.after(s, ran), count)
            return cheapest[to] + sum(self.steps[i].absent for i in range(s + 1, to))

        for s in reversed(range(count)):
            work, ways = self.steps[s], [self.steps[s].unit.total + onward(s, True)]
            if steps[s].routed == "skip":
                ways.append(work.absent + work.bypass + onward(s, False))
            cheapest[s] = work.look + min(ways)
        return (self.head + cheapest[0]) / self.dense

    def expected(self, density: float) -> float:
        """Multiply-accumulates per token where each routed step runs for a share `density` of the tokens; of a program
        without jumps."""
        routed = [self.steps[s] for s in self.program.routed]
        skips = sum(work.saved for work in routed) if self.program.skips else 0
        return self.dense + sum(work.look for work in routed) - (1 - density) * skips


def exact_cost(ledger: Ledger, tokens: Tokens, trace: Trace) -> Tensor:
    """True cost of each token relative to dense, float64 [N], as a held budget counts it (`core.hold`). Tokens at
    offset `inf` run the base: `Ledger.untouched`, mostly 1."""
    device = next((d.keep.device for d in trace.decisions.values()), tokens.offset.device)
    work = torch.full((tokens.count,), float(ledger.head), device=device, dtype=torch.float64)
    for s, price in enumerate(ledger.steps):
        ran, here = trace.ran(s), trace.here.get(s)
        if ran is None:
            work += price.unit.total
        else:
            work += torch.where(ran, float(price.unit.total), float(price.absent))
            if price.bypass:
                work += (~ran if here is None else here & ~ran) * float(price.bypass)
        if price.look and s in trace.decisions:
            work += price.look if here is None else here * float(price.look)
    return torch.where(tokens.full.to(device), ledger.untouched, work / ledger.dense)


def token_cost(ledger: Ledger, tokens: Tokens, trace: Trace) -> Tensor:
    """`exact_cost` in fp32, [N]."""
    return exact_cost(ledger, tokens, trace).float()
