"""A run in one picture: accuracy by k, and depth by k beside what is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthdial.maps.keep_figure import COLOURS, keep_figure, need_matplotlib


def draw(told: Mapping[str, Any], path: Path) -> Path:
    """Write the picture, whole or not at all. told: as `table.judged` has it. ValueError without matplotlib."""
    need_matplotlib("add --no-plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for n, rung in told["dense"].items():
        ks = [int(k) for k in rung["accuracy"]]
        left.plot(ks, [v["mean"] for v in rung["accuracy"].values()], color="0.75", linewidth=1)
        left.annotate(str(n), (ks[-1], list(rung["accuracy"].values())[-1]["mean"]), fontsize=7, color="0.5")
    for i, (name, method) in enumerate(told["methods"].items()):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3], "label": name}
        for axes, by in ((left, method["accuracy_by_k"]), (right, method["depth_by_k"])):
            axes.plot([int(k) for k in by], [v["mean"] for v in by.values()], marker=".", linewidth=1.2, **look)
    for ks in told["need"].values():
        right.plot([int(k) for k in ks], list(ks.values()), color="black", linewidth=2, label="need")
    left.set(xlabel="k", ylabel="share right", ylim=(-0.02, 1.02), title="grey: dense, by layers")
    right.set(xlabel="k", ylabel="layers run", title="depth")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(fontsize=7)
    keep_figure(figure, path)
    return path
