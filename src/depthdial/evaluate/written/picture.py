"""The picture of what is written: what the base says of it, loops, length and agreement, against true cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthdial.maps.keep_figure import interval_line, keep_figure, need_matplotlib

_PANELS = {
    "nll": ("the base's NLL of what is written", "nats a token", 1),
    "repeats": ("repeated 4-grams", "%", 100),
    "length": ("length of an answer", "tokens", 1),
    "chrf": ("agreement with the base's answer", "chrF", 1),
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG, a field for each figure, a line for each subject; whole or not at all. ValueError without
    matplotlib."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    fields = figure.subplots(2, 2).ravel()
    base = next((row for row in results["rows"] if row["kind"] == "base"), None)
    rows = [row for row in results["rows"] if row["kind"] not in ("base", "where")]
    names = dict.fromkeys(row["name"].removesuffix(f" {row['budget']:g}") for row in rows)
    for axes, (name, (title, unit, factor)) in zip(fields, _PANELS.items(), strict=True):
        if base and base[name]["mean"] is not None:
            axes.axhline(factor * base[name]["mean"], color="#888888", linewidth=1, linestyle="--", label="base")
        for place, subject in enumerate(names):
            own = [row for row in rows if row["name"].removesuffix(f" {row['budget']:g}") == subject]
            points = [(row["cost"]["mean"], row[name]) for row in own if row[name]["mean"] is not None]
            interval_line(axes, sorted(points, key=lambda point: point[0]), factor, place, subject)
        axes.set(title=title, ylabel=unit, xlabel="true cost of what is written, relative to dense")
        axes.title.set_fontsize(10)
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    if fields[0].get_legend_handles_labels()[0]:
        figure.legend(*fields[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    keep_figure(figure, path)
