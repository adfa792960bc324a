"""A budget that is met: feedback from what a text's own tokens cost to the offset of its next ones.

One offset buys different costs on different texts, and what a model writes at a low cost it tends to go on writing. So
the dial of a written text moves, at the end of each block of tokens, by what the text has cost so far. Nothing else is
looked at: a text gets the same offsets alone, in company, after preemption, and in whatever pieces it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

BLOCK = 16
"""Written tokens between two moves of the dial, so that whoever scores or trains can still run whole blocks."""
GRID = 1 / 64
"""Offsets are whole multiples of this, exact in every float type that they are added in."""
FINEST = 2.0**-20
"""Costs count as whole multiples of this, so that their sums are exact, and the same from any executor."""
FOLLOW = 0.7
"""How much of a block's miss is taken to last, and met by the next block's offset."""
REPAY = 0.7
"""How much of the text's whole deficit the next block is to make up for."""
DEBT = 2.5
"""Deficit in tokens of the dense model beyond which no more is paid back at a time, so that a text which could not be
held for long is not swung to the other end."""
REACH = 0.5
"""How far the offset may go from where it started, as a difference in cost by the curve's slope (no wind-up)."""
FLATTEST = 0.02
"""Least slope that is reckoned with, cost per unit of offset: where a curve is flat no offset is far."""


class HoldState(NamedTuple):
    """What a text carries along."""

    aim: float
    """The offset of the current block before it is put on the grid."""
    deficit: float
    """Budget minus cost, summed over the tokens of all whole blocks, in tokens of the dense model."""
    count: int
    """Tokens of the current block that have run, below BLOCK."""
    spent: float
    """Their costs' sum."""


@dataclass(frozen=True)
class Hold:
    """Holds the mean cost of each written text at `budget`.

    All in float64. With m the mean miss (budget - cost) of the block that ended and D the deficit of all blocks,
    aim += (FOLLOW m + REPAY D / BLOCK) / slope. Raises ValueError for a start or a slope that is not finite.
    """

    budget: float
    """Mean true cost asked for, relative to dense."""
    start: float
    """Offset of the first block."""
    slope: float
    """Cost per unit of offset near the budget, by the curve."""

    def __post_init__(self):
        if not all(map(math.isfinite, (self.budget, self.start, self.slope))):
            raise ValueError(f"a budget is held from a finite offset, not {self}; 1.0 needs no holding")

    def begin(self) -> HoldState:
        """The state before the first written token."""
        return HoldState(self.start, 0.0, 0, 0.0)

    def offset(self, state: HoldState) -> float:
        """The dial for the tokens up to the end of the current block."""
        return round(state.aim / GRID) * GRID

    def after(self, state: HoldState, costs: Iterable[float]) -> HoldState:
        """The state after more tokens, by what each cost in turn; they may end blocks and leave one open."""
        aim, deficit, count, spent = state
        slope = max(self.slope, FLATTEST)
        for cost in costs:
            count, spent = count + 1, spent + round(cost / FINEST) * FINEST
            if count == BLOCK:
                miss = self.budget - spent / BLOCK
                deficit += BLOCK * miss
                debt = min(max(deficit, -DEBT), DEBT) / BLOCK
                aim += (FOLLOW * miss + REPAY * debt) / slope
                aim = min(max(aim, self.start - REACH / slope), self.start + REACH / slope)
                count, spent = 0, 0.0
        return HoldState(aim, deficit, count, spent)
