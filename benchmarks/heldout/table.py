"""Results of a quality benchmark as Markdown tables. `results` is the benchmark's JSON, see benchmarks/quality.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from depthdial.evaluate.markdown import markdown

Figures = Mapping[str, Any]


def quality_table(results: Figures, group: str = "all") -> str:
    """Perplexity relative to the base's, by method and budget, with half the width of its 95 % interval."""
    return _by_budget(results, group, _ratio)


def kl_table(results: Figures, group: str = "all") -> str:
    """KL(base || model), nats per token, by method and budget."""
    return _by_budget(results, group, lambda s: f"{s['kl']:.3f}")


def layers_table(results: Figures, group: str = "all") -> str:
    """True cost met and mean layers used, by method and budget."""
    return _by_budget(
        results, group, lambda s: f"{s['cost']:.3f}" + ("" if s["layers"] is None else f" / {s['layers']:.1f}")
    )


def router_table(health: Figures) -> str:
    """One line per routed layer: run rate, overall and by kind of text; spread of the score; decisions against the
    majority."""
    kinds = list(health["layers"][0]["by_group"])
    lines = [
        [
            layer["layer"],
            f"{layer['run_rate']:.3f}",
            *(f"{layer['by_group'][kind]:.3f}" for kind in kinds),
            _number(layer["score_std"]),
            f"{layer['minority']:.3f}",
            "static in effect" if layer["static"] else "",
        ]
        for layer in health["layers"]
    ]
    head = ["layer", "run rate", *kinds, "std of score", "against majority", ""]
    return markdown(head, lines)


def class_table(rows: Sequence[Figures]) -> str:
    """Mean layers used by class of token, fewest first."""
    lines = [
        [
            row["name"],
            f"{row['tokens']:,}",
            f"{row['layers']:.2f}",
            "–" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}",
        ]
        for row in sorted(rows, key=lambda row: row["layers"])
    ]
    return markdown(["class of token", "tokens", "layers used", "95 % interval"], lines)


def _by_budget(results: Figures, group: str, cell: Callable[[Figures], str]) -> str:
    budgets = sorted({p["budget"] for s in results["subjects"] for p in s["points"]}, reverse=True)
    lines = []
    for subject in results["subjects"]:
        found = {p["budget"]: cell(p["groups"][group]) for p in subject["points"]}
        lines.append([subject["name"], *(found.get(budget, "out of reach") for budget in budgets)])
    return markdown(["method \\ true cost", *(f"{budget:g}" for budget in budgets)], lines)


def _ratio(summary: Figures) -> str:
    if summary["ratio_low"] is None:
        return f"{summary['ratio']:.3f}"
    return f"{summary['ratio']:.3f} ±{(summary['ratio_high'] - summary['ratio_low']) / 2:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
