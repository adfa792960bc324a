"""The picture of a base's headroom: what each way to leave layers out loses, and how early the head is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthdial.maps.keep_figure import COLOURS, keep_figure, label, need_matplotlib


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG, whole or not at all. ValueError without matplotlib."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    static, points = results["static"]["points"], results["oracle"]
    costs = [point["budget"] for point in points]
    left.plot([p["cost"] for p in static], [p["kl"] for p in static], color=COLOURS[0], marker=".", label="static, KL")
    for i, (row, name) in enumerate((("text", "each text its own, KL"), ("shuffled", "on shuffled scores, KL")), 1):
        left.plot(costs, [p[row]["kl"] for p in points], color=COLOURS[i], marker="o", linestyle="", label=name)
    tokens = [p["token"]["score"] for p in points]
    left.plot(costs, tokens, color=COLOURS[3], marker="s", linestyle="", label="each token its own, by scores")
    told = results["forecast"]
    error = [[t["nats"] - t["low"] for t in told], [t["high"] - t["nats"] for t in told]]
    left.errorbar(costs, [t["nats"] for t in told], error, color=COLOURS[6], marker="D", linestyle="", capsize=3,
                  label="a trained plug-in at best, NLL")  # fmt: skip
    left.set(xlabel="true cost", ylabel="nats a token above the base", title=label(results["model"]))
    left.set_ylim(0, 1.2 * max(p["kl"] for p in static))
    left.invert_xaxis()
    settled = results["settled"]
    right.plot(range(len(settled["curve"])), settled["curve"], color=COLOURS[0], label="is the final word")
    right.plot(range(len(settled["stays"])), settled["stays"], color=COLOURS[1], label="and stays it")
    right.set(xlabel="layers", ylabel="share of tokens", title="the head's likeliest token", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    keep_figure(figure, path)
