"""The picture of an evaluation: what is retained of the base's scores, against true cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthdial.core.extras import there
from depthdial.maps.keep_figure import COLOURS, keep_figure, need_matplotlib

_MARKS = "osD^vPX"


def can_draw() -> bool:
    """Is matplotlib there?"""
    return there("matplotlib")


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: the mean above chance with its interval (left), each task's share of the base (right); whole or not
    at all. Raises ValueError when matplotlib is missing."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = results["rows"]
    for i, name in enumerate(dict.fromkeys(_subject(row) for row in rows if row["kind"] != "base")):
        own = sorted((row for row in rows if _subject(row) == name), key=lambda row: row["cost"])
        found = [(row["cost"], row["mean_above_chance"]) for row in own if _known(row["mean_above_chance"]["mean"])]
        if not found:
            continue
        mean = [100 * told["mean"] for _, told in found]
        ends = [(told["low"] or told["mean"], told["high"] or told["mean"]) for _, told in found]
        errors = [
            [m - 100 * low for m, (low, _) in zip(mean, ends, strict=True)],
            [100 * high - m for m, (_, high) in zip(mean, ends, strict=True)],
        ]
        style: dict[str, Any] = {"color": COLOURS[i % 7], "marker": _MARKS[i % 7], "markersize": 5, "label": name}
        left.errorbar([cost for cost, _ in found], mean, yerr=errors, capsize=2, **style)
    counted = rows[0]["counted"] if rows else []
    adaptive = sorted((row for row in rows if row["kind"] == "adaptive"), key=lambda row: row["cost"])
    for i, task in enumerate(counted):
        points = [(row["tasks"][task]["cost"], 100 * row["tasks"][task]["above_chance"]) for row in adaptive]
        if points:
            right.plot(*zip(*points, strict=True), color=COLOURS[i % 7], marker=_MARKS[i % 7], markersize=4, label=task)
    left.set_title(f"mean of {len(counted)} tasks above chance", fontsize=10)
    right.set_title("the plug-in, task by task", fontsize=10)
    left.set_ylabel("score above chance, % of the base's")
    for axes in (left, right):
        axes.axhline(100, color="#888888", linewidth=0.8, linestyle="--")
        axes.set_xlabel("true cost relative to dense")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)  # never over a point
    keep_figure(figure, path)


def _subject(row: Mapping[str, Any]) -> str:
    return row["name"].removesuffix(f" {row['budget']:g}")


def _known(value: float | None) -> bool:
    return value is not None and value == value
