"""The picture of an evaluation: what is retained of the base's scores, against true cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthdial.maps.keep_figure import interval_line, keep_figure, label, need_matplotlib, style


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: the mean above chance with its interval (left), each task's share of the base (right); whole or not
    at all. Where no task is above chance both are of the score itself; what cannot be drawn is said in its place.
    Raises ValueError when matplotlib is missing."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in results["rows"] if row["kind"] != "where" and _is_number(row["cost"])]
    above = rows[0]["counted"] if rows else []
    mean, share = ("mean_above_chance", "above_chance") if above else ("mean_retained", "retained")
    for i, name in enumerate(dict.fromkeys(_subject(row) for row in rows if row["kind"] != "base")):
        own = sorted((row for row in rows if _subject(row) == name), key=lambda row: row["cost"])
        points = [(row["cost"], row[mean]) for row in own if _is_number(row[mean]["mean"])]
        if points:
            interval_line(left, points, 100, i, name)
    adaptive = sorted((row for row in rows if row["kind"] == "adaptive"), key=lambda row: row["cost"])
    tasks = above or list(dict.fromkeys(task for row in adaptive for task in row["tasks"]))
    for i, task in enumerate(tasks):
        entries = [row["tasks"][task] for row in adaptive if task in row["tasks"]]
        points = [(t["cost"], 100 * t[share]) for t in entries if _is_number(t[share]) and _is_number(t["cost"])]
        if points:
            right.plot(*zip(*points, strict=True), label=label(task), markersize=4, **style(i))
    of = f"mean of {len(above)} tasks above chance" if above else "mean of tasks, none of them above chance"
    left.set_title(of, fontsize=10)
    right.set_title("the plug-in, task by task", fontsize=10)
    left.set_ylabel("score above chance, % of the base's" if above else "score, % of the base's")
    for axes, missing in ((left, "no score that has a share of the base's"), (right, "no score of a plug-in")):
        _finish(axes, missing)
    keep_figure(figure, path)


def _finish(axes: Any, missing: str) -> None:
    axes.axhline(100, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xlabel("true cost of what is written (or scored), relative to dense")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)  # never over a point
    else:
        axes.text(0.5, 0.4, f"nothing to draw: {missing}", transform=axes.transAxes, ha="center", fontsize=9)


def _subject(row: Mapping[str, Any]) -> str:
    return row["name"].removesuffix(f" {row['budget']:g}")


def _is_number(value: float | None) -> bool:
    return value is not None and value == value
