"""Bootstrap intervals of means over tokens, whole groups of texts being what is drawn.

All figures of one `Bootstrap` come from the same draws, so that differences between them are paired: two tasks on the
same passages are compared on the same passages.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

DRAWS = 2000
MOST = 4000
"""Groups drawn one by one; more are drawn in this many bundles, which makes hardly a difference then."""


class Interval(NamedTuple):
    """A mean with its 95 % interval; NaN where nothing can be said."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


class Estimate(NamedTuple):
    """Means of K cells."""

    tokens: np.ndarray
    """int64 [K]"""
    mean: np.ndarray
    """[K]; NaN for an empty cell."""
    draws: np.ndarray
    """[DRAWS, K]"""

    def interval(self, k: int) -> Interval:
        return interval(float(self.mean[k]), self.draws[:, k])

    def difference(self, more: int, less: int) -> Interval:
        """Mean of cell `more` minus that of cell `less`."""
        return interval(float(self.mean[more] - self.mean[less]), self.draws[:, more] - self.draws[:, less])


def interval(mean: float, draws: np.ndarray) -> Interval:
    """The middle 95 % of the draws that have a value; of fewer than two groups nothing is known."""
    values = draws[np.isfinite(draws)]
    # the only group of a cell is missing from every third draw, one of two from every seventh
    if len(values) < 0.8 * len(draws):
        return Interval(mean, math.nan, math.nan)
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(mean, float(low), float(high))


class Bootstrap:
    """groups: int [N], the group of each token, numbered from 0. The same seed gives the same intervals."""

    def __init__(self, groups: np.ndarray, draws: int = DRAWS, seed: int = 0):
        generator = np.random.default_rng(seed)
        count = int(groups.max()) + 1 if len(groups) else 0
        if count > MOST:
            bundle = generator.permutation(count) % MOST
            groups, count = bundle[groups], MOST
        self.groups, self.count = groups, count
        counts = generator.multinomial(count, np.full(count, 1 / max(1, count)), size=draws)
        self._counts: Any = counts.astype(np.float64) if count > 1 else np.zeros((draws, count))
        """How often each draw has each group, [draws, groups]."""

    def means(self, values: np.ndarray, cells: np.ndarray, count: int) -> Estimate:
        """Mean of `values` [N] in each of `count` cells; cells: int [N], -1 for tokens that are in none."""
        where = (cells >= 0) & np.isfinite(values)
        place = self.groups[where] * count + cells[where]
        sizes = np.bincount(place, minlength=self.count * count).reshape(self.count, count)
        sums = np.bincount(place, values[where], self.count * count).reshape(self.count, count)
        return self._estimate(sums, sizes)

    def ratios(self, values: np.ndarray, weights: np.ndarray) -> Estimate:
        """Sum of `values` over sum of `weights` in each of K cells; both [N, K]."""
        sums, sizes = np.zeros((self.count, values.shape[1])), np.zeros((self.count, values.shape[1]))
        np.add.at(sums, self.groups, values)
        np.add.at(sizes, self.groups, weights)
        return self._estimate(sums, sizes)

    def _estimate(self, sums: np.ndarray, sizes: np.ndarray) -> Estimate:
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = (self._counts @ sums) / (self._counts @ sizes)
            return Estimate(sizes.sum(0).astype(np.int64), sums.sum(0) / sizes.sum(0), draws)

    def rates(self, ran: np.ndarray, where: np.ndarray) -> Estimate:
        """Share of the tokens `where` (bool [N]) that ran each layer; ran: bool [N, L]."""
        among = np.broadcast_to(where[:, None], ran.shape)
        return self.ratios(ran & among, among)

    def correlation(self, x: np.ndarray, y: np.ndarray, where: np.ndarray) -> Interval:
        """Pearson's correlation over the tokens `where`."""
        where = where & np.isfinite(x) & np.isfinite(y)
        if where.sum() < 3:
            return Interval(math.nan, math.nan, math.nan)
        x, y, group = x[where] - x[where].mean(), y[where] - y[where].mean(), self.groups[where]
        moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)
        sums = np.stack([np.bincount(group, column, self.count) for column in moments.T], 1)
        return interval(float(_pearson(sums.sum(0))), _pearson(self._counts @ sums))


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
