"""The threshold by which the rows of a decode pass vote on each layer, held so that they cost what they were asked to.

Skipped alone, a layer's weights are read as long as one row of the batch runs it, so 2 to 64 rows that decide apart
save nothing (engine.md). Where they vote, a layer runs for all of them or for none, by their mean gate against a
threshold. How often a mean of many gates passes a threshold depends on how many they are and what they read, so no
fixed one meets a budget: this one follows what passes really cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RATE = 0.3
"""How far the threshold's logit moves in a pass, per unit of cost off the budget. Costs of passes scatter by some 0.05,
which moves it by 0.015; a budget that is 0.1 off is met after some tens of passes."""
WIDEST = 12.0


class Ballot:
    """One threshold for each budget and size of batch (in powers of two), each from the plug-in's own on."""

    def __init__(self, cut: float = 0.0):
        self._cut = cut
        self._logits: dict[tuple[float, int], float] = {}

    def threshold(self, targets: Sequence[float]) -> float:
        """What the mean gate of rows with these budgets (true costs) must be above for a layer to run, in (0, 1)."""
        return 1 / (1 + math.exp(-self._logits.get(_kind(targets), self._cut)))

    def learn(self, targets: Sequence[float], costs: Sequence[float]) -> None:
        """A pass of rows with these budgets had these costs."""
        kind = _kind(targets)
        off = sum(costs) / len(costs) - sum(targets) / len(targets)
        moved = self._logits.get(kind, self._cut) + RATE * off
        self._logits[kind] = min(max(moved, -WIDEST), WIDEST)


def _kind(targets: Sequence[float]) -> tuple[float, int]:
    return round(sum(targets) / len(targets), 2), len(targets).bit_length()
