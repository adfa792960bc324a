"""Find where a dial must stand for a given true cost, so that all methods are compared at the same one.

Routers and random skips have a continuous dial. A static skip has steps (one layer is some 2.5 % of SmolLM2's cost):
between two steps the rows of the text take turns, so that the mean cost is met. What is then measured is the mean of
two neighbouring static models, weighted to meet the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

TOLERANCE, TRIES = 0.005, 3
Found = TypeVar("Found")


@dataclass(frozen=True)
class KnobMix:
    """Two settings of a dial between which rows take turns; `share` of the rows are at `high`."""

    low: float
    high: float
    share: float

    def at_high(self, rows: Tensor) -> Tensor:
        """Which rows (int64 [B], numbered from 0 over the whole text) are at `high`, bool [B]: evenly spread."""
        return ((rows + 1) * self.share).floor() > (rows * self.share).floor()

    def offsets(self, rows: Tensor) -> Tensor:
        """The setting of each row, fp32 [B]."""
        return torch.where(self.at_high(rows), self.high, self.low).float()


Knob = float | KnobMix


def mix_between(costs: dict[float, float], cost: float) -> Knob:
    """The mix of the two settings whose costs lie nearest to `cost`, one on each side; one alone if it costs just that.

    costs: cost by setting, in any order. Raises ValueError if all lie on one side.
    """
    below = max((k for k, c in costs.items() if c <= cost), key=lambda k: (costs[k], k), default=None)
    above = min((k for k, c in costs.items() if c >= cost), key=lambda k: (costs[k], k), default=None)
    if below is None or above is None:
        raise out_of_reach(costs, above is None)
    if costs[below] == cost:
        return below
    return KnobMix(below, above, (cost - costs[below]) / (costs[above] - costs[below]))


def out_of_reach(costs: dict[float, float], up: bool) -> ValueError:
    """What to say where all known costs lie above or, `up`, below the one asked for."""
    end = f"at most {max(costs.values()):.3f}" if up else f"at least {min(costs.values()):.3f}"
    return ValueError(f"out of reach: the true cost of this model is {end}; choose a budget nearer to that")


def meet_cost(
    run: Callable[[float], Found], cost: Callable[[Found], float], target: float, lowest: float
) -> tuple[float, Found]:
    """The budget and what was found, of up to `TRIES`, whose cost comes nearest to `target`: run again, with what was
    missed made up for; the first within `TOLERANCE` will do, and one without a cost. lowest: no budget below it can be
    asked for."""
    aim, best, nearest = min(max(target, lowest), 1 - 1e-9), None, math.inf
    for _ in range(TRIES):
        found = run(aim)
        miss = cost(found) - target
        if math.isnan(miss):
            return aim, found
        if abs(miss) < nearest:
            best, nearest = (aim, found), abs(miss)
        again = min(max(aim - miss, lowest), 1 - 1e-9)
        if nearest <= TOLERANCE or again == aim:
            break
        aim = again
    assert best is not None
    return best
