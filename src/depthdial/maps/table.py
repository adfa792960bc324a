"""A summary as tables for a terminal."""

from __future__ import annotations

import math

from rich.markup import escape
from rich.table import Table

from depthdial.core.printable import printable
from depthdial.maps.bootstrap import Interval
from depthdial.maps.summary import Summary

_MARKS = {"confirmed": "green", "refuted": "red", "undecided": "yellow"}


def tables(summary: Summary) -> list[Table | str]:
    """What to print, in order."""
    f = summary.facts
    view = "the pass that wrote them" if summary.view == "wrote" else "the pass that read them"
    first = printable(
        f"{f.model}, {f.plugin or 'no plug-in'}, {f.dial}: {summary.tokens:,} tokens ({summary.scope}) of "
        f"{summary.texts:,} texts in {summary.groups:,} groups; layers of {view}: {_plus(summary.layers)} of {f.layers}"
    )
    parts: list[Table | str] = [escape(first)]
    if summary.costs:
        words = {"prompt_cost": "prompts", "cost": "answers"}
        text = ", ".join(f"{words[name]} {c.mean:.3f} ({_ends(c, 3)})" for name, c in summary.costs.items())
        parts.append(f"true cost relative to dense: {text}")
    for name, cells in summary.tables.items():
        table = _table(name, "tokens", "layers", "95 % interval")
        for cell in cells:
            table.add_row(
                escape(printable(cell.name)), f"{cell.tokens:,}", f"{cell.layers.mean:.2f}", _ends(cell.layers)
            )
        parts.append(table)
    if summary.entropy:
        table = _table(f"correlation with {f.predictor}'s entropy", "r", "95 % interval")
        for name, r in summary.entropy.items():
            table.add_row(escape(printable(name)), f"{r.mean:.3f}", _ends(r, 3))
        parts.append(table)
    if summary.run_rate:
        table = _table("layer", "runs for", "95 % interval")
        for layer in f.routed:
            rate = summary.run_rate[layer]
            table.add_row(str(layer + 1), f"{rate.mean:.1%}", _ends(rate, 3))
        parts.append(table)
    if summary.orderings:
        table = _table("the paper's orderings", "verdict", "differences (95 % interval)")
        for ordering in summary.orderings:
            steps = "\n".join(f"{name}: {step.mean:+.2f} ({_ends(step)})" for name, step in ordering.steps)
            colour = _MARKS[ordering.verdict]
            table.add_row(ordering.claim, f"[{colour}]{ordering.verdict}[/{colour}]", steps)
        parts.append(table)
    return parts


def _table(name: str, *columns: str) -> Table:
    table = Table(name, box=None, pad_edge=False, padding=(0, 2, 0, 0), title=None, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if "interval" in column or column == "verdict" else "right")
    return table


def _plus(interval: Interval) -> str:
    return f"{interval.mean:.2f} ({_ends(interval)})"


def _ends(interval: Interval, digits: int = 2) -> str:
    if not math.isfinite(interval.low):
        return "unknown: one group"
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"
