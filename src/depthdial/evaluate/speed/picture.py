"""The picture of a speed benchmark: speed-up over our dense engine against true cost, with the ideal line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthdial.evaluate.speed.table import regime_name, row_name
from depthdial.maps.keep_figure import keep_figure, need_matplotlib

_COLOURS = {"dense": "#000000", "adaptive": "#0072b2", "control": "#d55e00", "lossless": "#009e73"}
_MARKS = {"our dense": "s", "adaptive": "o", "random": "^", "static": "v", "lossless": "D"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG, one field for each regime; whole or not at all. ValueError without matplotlib."""
    need_matplotlib()
    from matplotlib.figure import Figure

    regimes = list(dict.fromkeys(regime_name(row) for row in results["rows"]))
    figure = Figure(figsize=(3.6 * max(len(regimes), 1), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(len(regimes), 1), squeeze=False)[0], regimes, strict=False):
        _field(axes, name, [row for row in results["rows"] if regime_name(row) == name and row.get("cost")])
    keep_figure(figure, path)


def _field(axes: Any, name: str, rows: list[Mapping[str, Any]]) -> None:
    first = rows[0]["precision"] if rows else None
    ours = [row for row in rows if row["precision"] == first and "ideal_speedup" in row]
    for label in dict.fromkeys(row["name"] for row in ours if row["kind"] == "adaptive"):
        alike = [row for row in ours if row["kind"] == "dense" or row["name"] == label]
        line = sorted((row["cost"], row["ideal_speedup"]) for row in alike)
        style = "--" if label == "adaptive" else ":"
        axes.plot(*zip(*line, strict=True), color="#888888", linestyle=style, linewidth=1, label=f"ideal, {label}")
    labels = set()
    for row in rows:
        label = row_name({**row, "budget": None})
        style = {"color": _COLOURS.get(row["kind"], "#888888"), "marker": _MARKS.get(row["name"], "x")}
        if row["precision"] in ("int8", "int4"):
            style["fillstyle"] = "none"
        axes.plot([row["cost"]], [row["times_dense"]], linestyle="", label=None if label in labels else label, **style)
        labels.add(label)
    axes.axhline(1.0, color="#bbbbbb", linewidth=0.8)
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("true cost relative to dense")
    axes.set_ylabel("speed relative to our dense")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
