"""Bisection of a dial for a given true cost, where no curve was measured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise

from depthdial.evaluate.equal_cost import Knob, mix_between, out_of_reach


class CostSearch:
    """Bisection on a measured cost that rises with the dial; what was measured once is remembered.

    cost_at: dial -> mean true cost. resolution: the smallest step of the dial that matters, 1.0 for a static method,
    whose costs change at whole numbers only; the search moves in multiples of it. widest: the dial's far ends.
    """

    def __init__(self, cost_at: Callable[[float], float], resolution: float = 2**-10, widest: float = 64.0):
        self.cost_at, self.resolution, self.widest = cost_at, resolution, widest
        self.known: dict[float, float] = {}

    def __call__(self, cost: float, tolerance: float = 0.001) -> Knob:
        """The setting whose measured cost is within `tolerance` of `cost`, or, where the cost jumps over it, the mix of
        the two settings beside the jump. Raises ValueError where the dial does not reach so far."""
        self._at(0.0)
        for step in count():
            nearest = min(self.known, key=lambda offset: abs(self.known[offset] - cost))
            if abs(self.known[nearest] - cost) <= tolerance:
                return nearest
            known = sorted(self.known)
            around = [(a, b) for a, b in pairwise(known) if self.known[a] < cost <= self.known[b]]
            if not around:
                self._at(self._further(up=max(self.known.values()) < cost))
                continue
            low, high = around[0]
            if high - low <= self.resolution:
                return mix_between({low: self.known[low], high: self.known[high]}, cost)
            # every second step halves, so that a curve of any form is found in few
            share = 0.5 if step % 2 else (cost - self.known[low]) / (self.known[high] - self.known[low])
            steps = round((high - low) / self.resolution)
            self._at(low + self.resolution * min(max(1, round(steps * min(0.9, max(0.1, share)))), steps - 1))
        raise AssertionError

    def _further(self, up: bool) -> float:
        """The next offset to try beyond all known ones."""
        offset = max(1.0, 2 * max(self.known)) if up else min(-1.0, 2 * min(self.known))
        if abs(offset) > self.widest:
            raise out_of_reach(self.known, up)
        return offset

    def _at(self, offset: float) -> float:
        if offset not in self.known:
            self.known[offset] = self.cost_at(offset)
        return self.known[offset]
