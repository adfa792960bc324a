"""`budget="auto"`: a dial that moves by itself, within bounds, to keep a speed or to follow the load.

With a target in tokens per second and text, the budget falls while texts come slower than that and rises while they
come faster. Without one it falls as texts wait for a place in the batch. It moves while texts are being generated, so
that a text's cost is known only afterwards, and the text itself depends on the load and on the clock: it is not
reproducible. Where a method leaves no K and V for what it skips, a text keeps the budget that it begins with. This file
is *not* about what a budget means (`core.dial`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

GAIN = 0.25
"""Share of the way to the wanted budget that a step goes."""
GRAIN = 0.01
"""The budget is set in steps of this size: the offsets of equal budgets are equal."""
SEEN = 8
"""Steps whose median duration is believed."""


class AutoBudget:
    """lowest, highest: bounds of the budget (true cost). target: tokens per second of each text; None: by the load.

    clock: seconds; for tests. Raises ValueError for bounds out of order and a target that is not positive.
    """

    def __init__(
        self,
        lowest: float,
        highest: float,
        target: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if not 0 < lowest <= highest <= 1:
            raise ValueError(
                f"the bounds of budget='auto' must rise within 0 and 1.0, not {lowest} to {highest}: say (0.75, 1.0)"
            )
        if target is not None and not target > 0:
            raise ValueError(f"target_tokens_per_second must be above 0, not {target!r}")
        self.lowest, self.highest, self.target, self._clock = lowest, highest, target, clock
        self._exact = highest
        self._before: float | None = None
        self._durations: deque[float] = deque(maxlen=SEEN)

    @property
    def budget(self) -> float:
        """Where the dial stands."""
        stepped = round(self._exact / GRAIN) * GRAIN
        return min(max(round(stepped, 6), self.lowest), self.highest)

    def stepped(self, tokens: int, cost: float, waiting: int, places: int) -> None:
        """A step has ended. tokens: that it gave, one per text; cost: their mean true cost; waiting: texts without a
        place among the `places` of the batch."""
        now = self._clock()
        before, self._before = self._before, now
        if self.target is None:
            self._move(self.highest - (self.highest - self.lowest) * min(1.0, waiting / places))
        elif tokens and before is not None:
            self._durations.append(now - before)
            # most of a pass is in proportion to its cost; what is not is corrected by the passes that follow
            self._move(cost / (median(self._durations) * self.target))

    def rest(self) -> None:
        """Nothing runs: time that passes now is nobody's."""
        self._before = None

    def _move(self, wanted: float) -> None:
        wanted = min(max(wanted, self.lowest), self.highest)
        self._exact += GAIN * (wanted - self._exact)
