"""The picture of a quality benchmark: quality against true cost, one line per method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthdial.maps.keep_figure import COLOURS, keep_figure, need_matplotlib

_MARKS = "osD^vPX"
HIGHEST = 2.0
"""Perplexities above this many times the base's leave the picture, as do untrained methods that are far worse than
trained ones: where the lines part is below it."""


def draw(results: Mapping[str, Any], path: Path, group: str = "all") -> None:
    """Write a PNG: perplexity relative to the base (left) and KL from it (right) against true cost.

    results: the benchmark's JSON (benchmarks/quality.py). The file is there whole or not at all. Raises ValueError when
    matplotlib is missing.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, subject in enumerate(results["subjects"]):
        found = sorted((p["groups"][group] for p in subject["points"]), key=lambda s: s["cost"])
        cost = [s["cost"] for s in found]
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": _MARKS[i % len(_MARKS)],
            "linestyle": "-" if subject["trained"] else ":",
            "markersize": 4,
            "label": subject["name"],
        }
        ratio = [s["ratio"] for s in found]
        ends = [(s["ratio_low"] or s["ratio"], s["ratio_high"] or s["ratio"]) for s in found]  # null: one row only
        errors = [
            [r - low for r, (low, _) in zip(ratio, ends, strict=True)],
            [high - r for r, (_, high) in zip(ratio, ends, strict=True)],
        ]
        left.errorbar(cost, ratio, yerr=errors, capsize=2, **style)
        right.plot(cost, [s["kl"] for s in found], **style)
    seen = [p["groups"][group] for s in results["subjects"] if s["trained"] for p in s["points"]]
    left.set_ylim(0.98, min(HIGHEST, 1.05 * max((s["ratio_high"] or s["ratio"] for s in seen), default=HIGHEST)))
    right.set_ylim(0, min(1.2, 1.05 * max((s["kl"] for s in seen), default=1.2)) or 1.2)
    left.set_ylabel("perplexity relative to the base")
    right.set_ylabel("KL(base || model), nats per token")
    tokens = results["text"]["groups"][group]
    left.set_title(f"held-out text, {tokens:,} tokens ({group}), all of which skip", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("true cost relative to dense")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    right.legend(fontsize=8)
    keep_figure(figure, path)
