"""Quality against speed, one picture for README, from two files that `depthdial evaluate --written` and `bench` wrote.

    python benchmarks/tradeoff.py docs/images/tradeoff.svg

Points of one budget are joined: decode speed over our dense (batch 1, `bench`) and the loss of what is written,
judged by the untouched base (`evaluate --written`). Both are of one machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

RESULTS = Path(__file__).parent / "results"
SUBJECTS = (
    ("shipped", "adaptive", "depthdial's plug-in", "#1b6ca8", "o"),
    ("static", "static", "best fixed layers", "#b3541e", "s"),
)
"""Name in the quality file, name in the speed file, words, colour, marker."""


def points(written: dict[str, Any], speed: dict[str, Any], subject: str, name: str) -> list[tuple[float, float, float]]:
    """(budget, speed over dense, NLL above the base's in nats) of the budgets that both files have."""
    decode = [row for row in speed["rows"] if row["regime"] == "decode" and row["precision"] == "bf16"]
    costs = {row["cost"]: row["budget"] for row in decode if row["name"] == "adaptive"}
    faster = {
        costs.get(row["budget"], row["budget"]): row["speedup"] for row in decode if row["name"] == name
    }  # controls were run at the plug-in's true costs
    loss = {row["budget"]: row["over_base"]["nll"]["mean"] for row in written["rows"] if row["subject"] == subject}
    return [(budget, faster[budget], loss[budget]) for budget in sorted(faster.keys() & loss.keys(), reverse=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--written", type=Path, default=RESULTS / "2026-11-30-2cpu-avx512-written.json")
    parser.add_argument("--speed", type=Path, default=RESULTS / "2026-11-30-2cpu-avx512-speed.json")
    args = parser.parse_args()
    written, speed = json.loads(args.written.read_text()), json.loads(args.speed.read_text())
    pyplot.rcParams.update({"font.size": 11, "svg.hashsalt": "depthdial", "font.family": "DejaVu Sans"})
    figure, axes = pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")
    axes.plot([1], [0], "k*", markersize=12)
    axes.annotate("the base, dense", (1, 0), xytext=(10, -4), textcoords="offset points")
    dense = {
        row["precision"]: row["tokens_per_second"]["median"]
        for row in speed["rows"]
        if row["regime"] == "decode" and row["name"] == "our dense"
    }
    int8 = next(row["over_base"]["nll"]["mean"] for row in written["rows"] if row["kind"] == "int8")
    axes.plot([dense["int8"] / dense["bf16"]], [int8], "kD", label="dense in int8")
    for subject, name, words, colour, marker in SUBJECTS:
        drawn = points(written, speed, subject, name)
        if not drawn:
            raise SystemExit(f"{args.written} and {args.speed} have no budget of {subject} in common")
        xs, ys = [1, *(x for _, x, _ in drawn)], [0, *(y for *_, y in drawn)]
        axes.plot(xs, ys, color=colour, marker=marker, label=words)
        for budget, x, y in drawn:
            axes.annotate(f"{budget:g}", (x, y), xytext=(8, 4), textcoords="offset points", color=colour)
    axes.invert_yaxis()
    axes.set_xlabel("decoding speed over dense (batch 1)")
    axes.set_ylabel("loss of what is written\n(nats a token above the base)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", title="at budgets of")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.output, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
