"""From how many rows on, and up to which cost, skipping saves time: measured once per machine and model, then kept.

Gathering the rows that run costs something, and in a batch a layer's weights are read as long as one row runs. So the
engine measures decode passes of several sizes with the dial at several places, beside dense passes. Where skipping
does not pay, all rows of a layer are run and those that skip are selected away: the same decisions and the same output,
by the dense computation. This file is *not* about how a pass is timed (`trial`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from depthdial.core.whole import write_json

ROWS = (1, 4, 16, 64)
TIMES = 5


class Trial(NamedTuple):
    """One timed decode pass."""

    seconds: float
    cost: float
    """Mean true cost of its rows."""


Run = Callable[[int, float], Trial]
"""A decode pass of so many rows with the dial at an offset; `inf` is dense."""


class Point(NamedTuple):
    """Passes of one size and dial."""

    rows: int
    cost: float
    """Mean true cost relative to dense; 1 for the dense pass itself."""
    ratio: float
    """Seconds over those of the dense pass of as many rows."""


@dataclass(frozen=True)
class BreakEven:
    """Where skipping begins to pay, on one machine and model."""

    key: Mapping[str, str]
    """What it was measured for."""
    floor: float
    """Cost of a token that skips every layer it may."""
    top: float
    """Cost of a token that is asked everywhere and skips nothing: its routers make it more than 1."""
    points: tuple[Point, ...]

    def highest_cost(self, rows: int) -> float:
        """The highest true cost at which a pass of so many rows is no slower than dense; `floor` where none is.

        Between measured sizes linear in log(rows), beyond them the nearest one's.
        """
        sizes = sorted({point.rows for point in self.points})
        if rows <= sizes[0] or rows >= sizes[-1]:
            return self._of_size(sizes[0] if rows <= sizes[0] else sizes[-1])
        above = next(i for i, size in enumerate(sizes) if size >= rows)
        low, high = sizes[above - 1], sizes[above]
        t = math.log(rows / low) / math.log(high / low)
        return (1 - t) * self._of_size(low) + t * self._of_size(high)

    def skip_pays(self, rows: int, expected_cost: float) -> bool:
        """Is a pass of `rows` rows at this mean true cost expected to be no slower than a dense one?"""
        return expected_cost <= self.highest_cost(rows)

    def share(self, rows: int) -> float:
        """Of a routed layer: gather the rows that run where their share is at most this, else run all and select."""
        return (self.highest_cost(rows) - self.floor) / (self.top - self.floor)

    def _of_size(self, rows: int) -> float:
        """Where the line through the measured ratios crosses 1."""
        found = [(point.cost, point.ratio) for point in self.points if point.rows == rows and point.cost != 1.0]
        if not found:
            return self.floor
        mean_cost, mean_ratio = (sum(column) / len(found) for column in zip(*found, strict=True))
        spread = sum((cost - mean_cost) ** 2 for cost, _ in found)
        slope = sum((c - mean_cost) * (r - mean_ratio) for c, r in found) / spread if spread > 1e-9 else 0.0
        if slope <= 1e-9:  # time does not fall with the cost: all or nothing
            return self.top if mean_ratio <= 1 else self.floor
        return min(max(mean_cost + (1 - mean_ratio) / slope, self.floor), self.top)

    def to_json(self) -> dict[str, Any]:
        highest = [
            {"rows": rows, "cost": self.highest_cost(rows), "share": self.share(rows)}
            for rows in sorted({point.rows for point in self.points})
        ]
        return {
            "key": dict(self.key),
            "floor": self.floor,
            "top": self.top,
            "points": [point._asdict() for point in self.points],
            "highest": highest,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> BreakEven:
        return cls(told["key"], told["floor"], told["top"], tuple(Point(**point) for point in told["points"]))


def measure(
    run: Run,
    key: Mapping[str, str],
    floor: float,
    top: float,
    offsets: Sequence[float],
    rows: Sequence[int] = ROWS,
    times: int = TIMES,
) -> BreakEven:
    """Time passes of each size, dense and at each offset, in turn. offsets: places of the dial below `inf`."""
    points = []
    for count in rows:
        trials: dict[float, list[Trial]] = {offset: [] for offset in (math.inf, *offsets)}
        for offset in trials:  # the first pass of a kind makes buffers and kernels
            run(count, offset)
        for _ in range(times):
            for offset, found in trials.items():
                found.append(run(count, offset))
        dense = max(median(trial.seconds for trial in trials[math.inf]), 1e-12)
        for found in trials.values():
            cost = sum(trial.cost for trial in found) / len(found)
            points.append(Point(count, cost, median(trial.seconds for trial in found) / dense))
    return BreakEven(key, floor, top, tuple(points))


def cached(key: Mapping[str, str], folder: Path, make: Callable[[], BreakEven]) -> BreakEven:
    """The break-even that is kept for this key, else a new one, which is kept from now on.

    A file that cannot be read is measured anew; a folder that cannot be written is no error.
    """
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = BreakEven.from_json(json.loads(path.read_text()))
        if dict(found.key) == dict(key):
            return found
    made = make()
    with contextlib.suppress(OSError):
        write_json(path, made.to_json())
    return made
