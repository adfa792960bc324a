"""The picture of a summary: every table with its intervals, and which layers run for which task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depthdial.maps.bootstrap import Interval
from depthdial.maps.keep_figure import keep_figure, label, need_matplotlib
from depthdial.maps.summary import Cell, Summary

_INK, _POINT, _SOFT = "#1d1f23", "#123570", "#8a8678"
_RISING = ("position", "surprisal")
"""Tables whose cells are steps of one scale."""


def draw(summary: Summary, path: Path) -> None:
    """Write a PNG; it is there whole or not at all. Raises ValueError when matplotlib is missing."""
    need_matplotlib()
    from matplotlib.figure import Figure

    tables = _panels(summary)
    count = len(tables) + bool(summary.entropy) + 2 * bool(summary.run_rate)
    rows = -(-count // 3)
    figure = Figure(figsize=(14, 3.6 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 3)
    places = [(i // 3, i % 3) for i in range(count)]
    axes = [figure.add_subplot(grid[r, c]) for r, c in places[: len(tables) + bool(summary.entropy)]]
    for axis, (name, cells) in zip(axes, tables, strict=False):
        _cells(axis, name, cells, _title(name, summary))
        axis.axvline(summary.layers.mean, color=_SOFT, linewidth=0.8, linestyle=":") if name not in _RISING else None
    if summary.entropy:
        _entropy(axes[-1], summary)
    if summary.run_rate:
        r, c = places[-2]
        rates = figure.add_subplot(grid[r, c])
        _rates(rates, summary)
        r, c = places[-1]
        _heat(figure, figure.add_subplot(grid[r, c]), summary)
    f = summary.facts
    dial = "as trained" if f.budget is None else f"budget {f.budget:g}"
    figure.suptitle(
        f"{label(f.model)}, {label(f.plugin or f.method)}, {dial}: {summary.tokens:,} tokens ({summary.scope}) of "
        f"{summary.texts:,} texts; bars are 95 % intervals over {summary.groups:,} groups of texts",
        fontsize=10,
        color=_INK,
    )
    keep_figure(figure, path, 110)


def _panels(summary: Summary) -> list[tuple[str, list[Cell]]]:
    """Tables in the order of the picture; the two of "=" share a panel."""
    tables = dict(summary.tables)
    within = tables.pop("repetition within tasks", [])
    if within:
        tables["repetition"] = [*tables["repetition"], *(_rename(cell, "within tasks") for cell in within)]
    return list(tables.items())


def _rename(cell: Cell, suffix: str) -> Cell:
    return Cell(f"{cell.name}, {suffix}", cell.tokens, cell.layers)


def _errors(intervals: Sequence[Interval]) -> np.ndarray:
    """[2, K] distances to the ends of the intervals; 0 where nothing is known."""
    pairs = [(i.mean - i.low, i.high - i.mean) for i in intervals]
    return np.nan_to_num(np.array(pairs)).T.clip(min=0)


def _cells(axis: Any, name: str, cells: list[Cell], title: str) -> None:
    layers = [cell.layers for cell in cells]
    means, style = [interval.mean for interval in layers], {"color": _POINT, "capsize": 2, "markersize": 4}
    if name in _RISING:
        axis.errorbar(range(len(cells)), means, yerr=_errors(layers), fmt="o-", linewidth=1, **style)
        axis.set_xticks(range(len(cells)), [label(cell.name) for cell in cells], rotation=45, ha="right", fontsize=7)
        axis.set_ylabel("layers", fontsize=8)
    else:
        axis.errorbar(means, range(len(cells)), xerr=_errors(layers), fmt="o", **style)
        axis.set_yticks(range(len(cells)), [f"{label(cell.name)}  ({cell.tokens:,})" for cell in cells], fontsize=8)
        axis.invert_yaxis()
        axis.margins(y=0.15)
        axis.set_xlabel("layers", fontsize=8)
    _finish(axis, title)


def _title(name: str, summary: Summary) -> str:
    if name == "position":
        return {"answer": "place in the answer", "prompt": "place in the text"}.get(
            summary.scope, "place in text or answer"
        )
    return f"decile of surprisal to {summary.facts.predictor} (nats)" if name == "surprisal" else name


def _entropy(axis: Any, summary: Summary) -> None:
    intervals = list(summary.entropy.values())
    style = {"color": _POINT, "capsize": 2, "markersize": 4}
    axis.errorbar([i.mean for i in intervals], range(len(intervals)), xerr=_errors(intervals), fmt="o", **style)
    axis.set_yticks(range(len(intervals)), [label(name) for name in summary.entropy], fontsize=8)
    axis.axvline(0, color=_SOFT, linewidth=0.8)
    axis.invert_yaxis()
    _finish(axis, f"correlation with {summary.facts.predictor}'s entropy")


def _rates(axis: Any, summary: Summary) -> None:
    layers = np.arange(1, len(summary.run_rate) + 1)
    low, high = ([getattr(rate, end) for rate in summary.run_rate] for end in ("low", "high"))
    axis.bar(layers, [rate.mean for rate in summary.run_rate], color="#a59c74", width=0.8)
    axis.vlines(layers, low, high, color=_INK, linewidth=1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("layer", fontsize=8)
    _finish(axis, "share of tokens that run each layer")


def _heat(figure: Any, axis: Any, summary: Summary) -> None:
    rates = np.array(list(summary.run_rate_by_task.values()))
    image = axis.imshow(rates, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.set_yticks(range(len(rates)), [label(name) for name in summary.run_rate_by_task], fontsize=8)
    ticks = range(0, rates.shape[1], max(1, rates.shape[1] // 8))
    axis.set_xticks(ticks, [str(layer + 1) for layer in ticks])
    axis.set_xlabel("layer", fontsize=8)
    figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    _finish(axis, "share that runs, by task", grid=False)


def _finish(axis: Any, title: str, grid: bool = True) -> None:
    axis.set_title(title, fontsize=9, loc="left", color=_INK)
    axis.tick_params(axis="both", which="major", labelsize=8, length=2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if grid:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
