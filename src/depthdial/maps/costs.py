"""What a map's prompts and answers cost, told apart: true cost relative to dense, over all of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from depthdial.maps.bootstrap import Bootstrap, Interval
from depthdial.maps.schema import DepthMap

NAMES = ("prompt_cost", "cost")
"""Of tokens that are read, and of those that are written: template marks count, too, since they run."""


class MapCosts:
    """Sums over the texts of a map, part by part."""

    def __init__(self) -> None:
        self._groups: dict[str, int] = {}
        self._rows: list[tuple[int, list[float], list[int]]] = []

    def counting(self, parts: Iterable[DepthMap]) -> Iterator[DepthMap]:
        """The same parts, seen on their way."""
        for part in parts:
            for row in part.rows:
                own = [row.costs(generated) for generated in (False, True)]
                group = self._groups.setdefault(row.group, len(self._groups))
                self._rows.append((group, [float(c.sum()) for c in own], [len(c) for c in own]))
            yield part

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """By name, over groups; what no pass tells of is left out."""
        groups, sums, counts = (np.array(column) for column in zip(*self._rows, strict=True))
        ratios = Bootstrap(groups, seed=seed).ratios(sums, counts)
        return {name: ratios.interval(i) for i, name in enumerate(NAMES) if ratios.tokens[i]}
