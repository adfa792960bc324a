"""The dial: which logit offset buys which true cost, measured on held-out text and kept with the plug-in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from depthdial.core.hold import Hold

PromptBudget = float | Literal["same"]
"""True cost that what is *read* may have, relative to dense: 1.0 is the untouched base, "same" the budget of what is
written (the form of the papers)."""


def prompt_budget(value: object) -> PromptBudget:
    """The value as a `PromptBudget`. Raises ValueError, one line, for what is none."""
    if value == "same":
        return "same"
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:  # nan fails, too
        raise ValueError(
            f'prompt_budget must be above 0 and at most 1.0 (prompts read by the untouched base), or "same" as the '
            f"budget of what is written, not {value!r}"
        )
    return float(value)


class Dials(NamedTuple):
    """Logit offsets of one text; `inf` is the untouched base."""

    written: float
    """Of what is generated; where it is held, of the first tokens."""
    read: float | None = None
    """Of its prompt; None: as `written`, wherever that is (the form of the papers)."""
    hold: Hold | None = None
    """What moves `written` so that the budget is met; None where it stays."""

    @property
    def reading(self) -> float:
        """The offset of its prompt."""
        return self.written if self.read is None else self.read

    @property
    def alike(self) -> bool:
        """Does a token run the same whether it is read or written?"""
        return self.hold is None and self.read in (None, self.written)


@dataclass(frozen=True, repr=False)
class Curve:
    """Measured points (offset, cost, KL in nats per token) of one kind of token, sorted by rising cost."""

    offsets: tuple[float, ...]
    costs: tuple[float, ...]
    kls: tuple[float, ...]
    step: float = 0.0
    """The mean size of the steps in which offsets act (a static method drops whole layers), with a measured point in
    each; 0 is a dial without steps."""

    def __post_init__(self):
        if not len(self.offsets) == len(self.costs) == len(self.kls) or len(self.offsets) < 2:
            raise ValueError("a budget curve needs at least two points, each with an offset, a cost and a KL")
        if any(b <= a for a, b in zip(self.offsets, self.offsets[1:], strict=False)):
            raise ValueError("the offsets of a budget curve must rise")
        if any(b < a for a, b in zip(self.costs, self.costs[1:], strict=False)):
            raise ValueError("the costs of a budget curve must not fall as the offset rises")

    def __repr__(self) -> str:
        return f"Curve({len(self.costs)} points, costs {self.floor:.3f} to {self.costs[-1]:.3f})"

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float, float]], step: float = 0.0) -> Curve:
        """A curve from measured (offset, cost, KL); small dips of noise in the cost are levelled (running maximum)."""
        rows, top = [], -math.inf
        for offset, cost, kl in sorted(points):
            top = max(top, cost)
            rows.append((offset, top, kl))
        return cls(*(tuple(column) for column in zip(*rows, strict=True)), step=step)

    @property
    def floor(self) -> float:
        """The lowest cost this curve can promise."""
        return self.costs[0]

    def offset(self, budget: float) -> float:
        """The logit offset for a requested mean cost in [floor, 1.0]; 1.0 is `inf`, the untouched base.

        Linear between measured points; where the dial has steps, that of the step below: never more than the budget.
        Between the highest measured cost and 1.0 the highest offset is used, the nearest the routers come to running
        everything. Raises ValueError outside the range.
        """
        if not (isinstance(budget, int | float) and self.floor - 1e-9 <= budget <= 1.0):  # nan fails, too
            least = math.ceil(self.floor * 1000) / 1000
            raise ValueError(
                f"budget {budget} is outside what this plug-in can do: {least:.3f} to 1.0 (1.0 is the untouched base)"
            )
        if budget == 1.0:
            return math.inf
        if self.step:
            return max(
                o for o, cost in zip(self.offsets, self.costs, strict=True) if cost <= max(budget, self.floor) + 1e-9
            )
        return self._between(budget)

    def stop(self, budget: float) -> float | None:
        """The cost of the stop that `offset` takes for a budget; None where the dial has no steps."""
        if not self.step:
            return None
        offset = self.offset(budget)
        return 1.0 if offset == math.inf else self.costs[self.offsets.index(offset)]

    def hold(self, budget: float) -> Hold | None:
        """What holds a text at a budget, from where this curve says; None at 1.0, the untouched base, which costs that.

        Its slope is that of the costs within 0.05 of the budget. A dial with steps starts between two. Raises
        ValueError outside the range, as `offset`.
        """
        if self.offset(budget) == math.inf:
            return None
        near = min(budget, self.costs[-1])
        low, high = max(self.floor, near - 0.05), min(1.0, self.costs[-1], near + 0.05)
        run = self._between(high) - self._between(low)
        return Hold(budget, self._between(budget), (high - low) / run if run > 0 else 0.0)

    def _between(self, cost: float) -> float:
        """The offset of a cost, linear between measured points; the nearest for one that lies outside."""
        for i in range(1, len(self.costs)):
            low, high = self.costs[i - 1], self.costs[i]
            if cost <= high:
                t = 0.0 if high == low else max(0.0, cost - low) / (high - low)
                return self.offsets[i - 1] + t * (self.offsets[i] - self.offsets[i - 1])
        return self.offsets[-1]

    def kl(self, budget: float) -> float:
        """The KL to expect at a budget, nats per token; linear in the offset between measured points."""
        offset = self.offset(budget)
        if offset == math.inf:
            return 0.0
        for i in range(1, len(self.offsets)):
            if offset <= self.offsets[i]:
                t = (offset - self.offsets[i - 1]) / (self.offsets[i] - self.offsets[i - 1])
                return self.kls[i - 1] + t * (self.kls[i] - self.kls[i - 1])
        return self.kls[-1]
