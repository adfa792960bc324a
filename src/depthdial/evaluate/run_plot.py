"""Pictures of pre-training runs: loss against tokens, density over training, density by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthdial.evaluate.runs import Run
from depthdial.maps.keep_figure import COLOURS, keep_figure, need_matplotlib

SMOOTH = 25
"""Steps over which the training loss is averaged."""


def draw_runs(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write loss.png and density.png into `folder`, each whole or not at all. ValueError without matplotlib."""
    need_matplotlib("add --no-plots")
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(run.group for run in runs))
    look = {group: _look(i) for i, group in enumerate(groups)}
    labels: set[str] = set()

    def style(run: Run) -> dict[str, Any]:
        label = None if run.group in labels else run.group
        labels.add(run.group)
        return {**look[run.group], "label": label, "linewidth": 1.2}

    loss = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = loss.subplots(1, 2)
    for run in runs:
        steps, values = _series(run, "loss")
        per_step = run.results["tokens"] / run.results.get("steps", max(steps, default=1))
        left.plot([s * per_step / 1e6 for s in steps], _smooth(values), **{**style(run), "alpha": 0.8})
        steps, values = _series(run, "heldout_loss")
        ends = [*steps, run.results.get("steps", max(steps, default=1))]
        right.plot([s * per_step / 1e6 for s in ends], [*values, run.results["loss"]], **look[run.group], marker=".")
    for axes, title in ((left, "training loss"), (right, "held-out loss")):
        axes.set(xlabel="tokens, millions", ylabel="nats per token", title=title)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)

    density = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = density.subplots(1, 2)
    labels.clear()
    for run in runs:
        steps, layers = _series(run, "layers")
        depth = len(run.results["density_per_layer"])
        left.plot(steps, [value / depth for value in _smooth(layers)], **style(run))
        right.plot(range(depth), run.results["density_per_layer"], **look[run.group], marker="o", markersize=3)
    left.set(xlabel="step", ylabel="share of layers executed", title="over training", ylim=(0, 1.05))
    right.set(xlabel="layer", ylabel="share of tokens that run it", title="held-out text", ylim=(-0.05, 1.05))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return [_save(figure, folder / name) for figure, name in ((loss, "loss.png"), (density, "density.png"))]


def _look(index: int) -> dict[str, str]:
    """Colours first, then the same ones dashed and dotted: no two of 21 groups look alike."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--", ":")[index // len(COLOURS) % 3]}


def _series(run: Run, name: str) -> tuple[list[float], list[float]]:
    points = [(line["step"], line[name]) for line in run.metrics if name in line]
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: Sequence[float]) -> list[float]:
    return [sum(values[max(0, i - SMOOTH + 1) : i + 1]) / min(i + 1, SMOOTH) for i in range(len(values))]


def _save(figure: Any, path: Path) -> Path:
    keep_figure(figure, path)
    return path
