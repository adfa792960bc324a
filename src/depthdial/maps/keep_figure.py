"""Keep a figure on disk, whole or not at all: what every picture of this project ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depthdial.core.extras import need
from depthdial.core.printable import printable
from depthdial.core.whole import whole

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which people of any colour vision tell apart; for lines and groups, in this order."""


_MARKS = "osD^vPX"


def need_matplotlib(or_else: str = "") -> None:
    """ValueError where matplotlib is not installed: to be asked before work starts."""
    need("matplotlib", "plots", "drawing", or_else)


def label(text: str) -> str:
    """A name of others as matplotlib shows it: no formula, no control character."""
    return printable(text).replace("$", r"\$")


def style(place: int) -> dict[str, Any]:
    """Colour and mark of a line."""
    return {"color": COLOURS[place % 7], "marker": _MARKS[place % 7]}


def interval_line(axes: Any, points: Sequence[tuple[float, Mapping[str, Any]]], factor: float, place: int, name: str):
    """A subject's means with their intervals ("mean", "low", "high"; an end that is not known is no bar), against
    cost."""
    means = [factor * mean["mean"] for _, mean in points]
    errors = [
        [factor * abs(interval["mean"] - _end(interval, end)) for _, interval in points] for end in ("low", "high")
    ]
    costs = [cost for cost, _ in points]
    axes.errorbar(costs, means, yerr=errors, capsize=2, markersize=5, label=label(name), **style(place))


def _end(interval: Mapping[str, Any], end: str) -> float:
    return interval["mean"] if interval[end] is None or interval[end] != interval[end] else interval[end]


def keep_figure(figure: Any, path: Path, dpi: int = 130) -> None:
    """Write a matplotlib figure as PNG beside `path` and rename it. Raises OSError where that cannot be done."""
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
