"""Results of what is written as Markdown. `results` is what `run.run` gives, read back from JSON or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthdial.evaluate.markdown import markdown, number, what_skips

Figures = Mapping[str, Any]
_MEANS = {
    "cost, written": ("cost", 3, 1),
    "cost, prompt": ("prompt_cost", 3, 1),
    "NLL, nats a token": ("nll", 3, 1),
    "repeated 4-grams, %": ("repeats", 1, 100),
    "end, %": ("ended", 0, 100),
    "tokens": ("length", 1, 1),
    "chrF": ("chrf", 1, 1),
}
"""What a column is called; its figure, digits, and factor."""
COLUMNS = (*_MEANS, "off its budget, mean (most)", "tokens/s")
_HUNDRED = ("repeats", "ended")
"""Shares, shown in percent."""
_OVER = {
    "nll": "NLL, nats a token",
    "repeats": "4-grams, points",
    "ended": "ending, points",
    "length": "length, tokens",
}


def tables(results: Figures) -> str:
    """All tables, each under a line that says what it shows."""
    rows, arguments = results["rows"], results["arguments"]
    texts = rows[0]["texts"] if rows else 0
    parts = [
        f"{texts} prompts, prompt_budget {arguments['prompt_budget']}, up to {arguments['max_tokens']} tokens, greedy; "
        "NLL and chrF are those of the untouched base; off its budget is one text of 64 tokens or more\n\n"
        + written_table(rows),
        "The same less the base's, on the same prompts; intervals are 95 %, paired bootstrap over prompts\n\n"
        + difference_table(rows),
    ]
    if any("adaptive_over_this" in row for row in rows):
        parts.append("The plug-in less each baseline at the same true cost\n\n" + baseline_table(rows))
    if any(row["kind"] == "where" for row in rows):
        parts.append("Where skipping hurts: what skips has the same true cost\n\n" + where_table(rows))
    parts += [f"Left out: {name} ({why})" for name, why in results.get("missing", {}).items()]
    return "\n\n".join(parts)


def written_table(rows: Sequence[Figures]) -> str:
    """One line per row: both costs, and all figures."""
    return markdown(["", *COLUMNS], [[row["name"], *cells(row)] for row in rows])


def difference_table(rows: Sequence[Figures]) -> str:
    """One line per row but the base's: differences from it."""
    lines = [
        [row["name"], number(row["cost"]["mean"], 3), *(_interval(row["over_base"], name) for name in _OVER)]
        for row in rows
        if row["kind"] != "base"
    ]
    return markdown(["", "cost, written", *_OVER.values()], lines)


def baseline_table(rows: Sequence[Figures]) -> str:
    """One line per baseline: what the plug-in has less than it (of chrF: more is better)."""
    lines = [
        [
            row["name"],
            number(row["cost"]["mean"], 3),
            *(_interval(row["adaptive_over_this"], name) for name in (*_OVER, "chrf")),
        ]
        for row in rows
        if "adaptive_over_this" in row
    ]
    return markdown(["against", "its cost, written", *_OVER.values(), "chrF"], lines)


def where_table(rows: Sequence[Figures]) -> str:
    """One line per row: the base, and for each budget the answer alone, the prompt alone, and both."""
    lines = [
        [
            name,
            number(row["cost"]["mean"], 3),
            number(row["prompt_cost"]["mean"], 3),
            *(_interval(row["over_base"], name) for name in ("nll", "repeats")),
            number(row["chrf"]["mean"], 1),
        ]
        for name, row in what_skips(rows)
    ]
    return markdown(
        ["what skips", "cost, written", "cost, prompt", *(_OVER[name] for name in ("nll", "repeats")), "chrF"], lines
    )


def cells(row: Figures) -> list[str]:
    """Under `COLUMNS`."""
    off = row["furthest_from_budget"]
    return [
        *(number(row[name]["mean"], digits, factor) for name, digits, factor in _MEANS.values()),
        f"{number(off['mean'], 3)} ({number(off['most'], 3)})" if off["texts"] else "–",
        number(row["tokens_per_second"], 0),
    ]


def _interval(figures: Figures, name: str) -> str:
    interval, factor = figures[name], 100 if name in _HUNDRED else 1
    digits = 3 if name == "nll" else 1
    if interval["mean"] is None:
        return "–"
    mean = f"{factor * interval['mean']:+.{digits}f}"
    if interval["low"] is None:
        return mean
    return f"{mean} ({factor * interval['low']:+.{digits}f} to {factor * interval['high']:+.{digits}f})"
