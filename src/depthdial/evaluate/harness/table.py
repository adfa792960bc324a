"""Results of an evaluation as Markdown. `results` is what `run.run` gives, read back from JSON or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthdial.evaluate.markdown import markdown, number, what_skips

Figures = Mapping[str, Any]


def tables(results: Figures) -> str:
    """All tables, each under a line that says what it shows."""
    rows = results["rows"]
    parts = [
        "Score ± standard error (share of the base's, %; share of scored tokens that a dense pass gave, %). "
        + _form(results)
        + "\n\n"
        + score_table(rows),
        "Cost, depth and what is retained; intervals are 95 %, paired bootstrap over items\n\n" + cost_table(results),
    ]
    if any("adaptive_over_this" in row for row in rows):
        parts.append(
            "The plug-in minus each baseline at the same true cost, on the same items\n\n" + difference_table(rows)
        )
    parts += [f"Left out: {name} ({why})" for name, why in results.get("missing", {}).items()]
    if any(row["kind"] == "where" for row in rows):
        parts.append("Where skipping hurts: what skips has the same true cost\n\n" + where_table(rows))
    left_out = rows[0]["at_chance"] if rows else []
    if left_out:
        parts.append(
            "At chance, or without a chance level, so not in the mean above chance: "
            + ", ".join(f"{task} ({_why(rows[0]['tasks'][task])})" for task in left_out)
        )
    return "\n\n".join(parts)


def score_table(rows: Sequence[Figures]) -> str:
    """One line per row, one column per task."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    by_task = {task: next(row["tasks"][task] for row in rows if task in row["tasks"]) for task in tasks}
    head = ["", *(f"{task}, {figures['metric']} (n = {figures['items']})" for task, figures in by_task.items())]
    return markdown(head, [[row["name"], *(_score(row, task) for task in tasks)] for row in rows])


def cost_table(results: Figures) -> str:
    """One line per row: true cost, layers, means of what is retained, wall clock."""
    columns = {
        "cost, written": ("cost", 3),
        "cost, prompt": ("prompt_cost", 3),
        f"layers of {results['layers']}, prompt": ("layers_prompt", 1),
        "layers, answer": ("layers_answer", 1),
        "mean retained, %": ("mean_retained", None),
        "mean above chance, %": ("mean_above_chance", None),
        "seconds": ("seconds", 0),
        "of processor": ("cpu_seconds", 0),
    }
    cells = [
        [_percent(row[name]) if digits is None else number(row[name], digits) for name, digits in columns.values()]
        for row in results["rows"]
    ]
    return markdown(["", *columns], [[row["name"], *own] for row, own in zip(results["rows"], cells, strict=True)])


def where_table(rows: Sequence[Figures]) -> str:
    """One line per row: the base, and for each budget the answer alone, the prompt alone, and both."""
    named_rows = what_skips(rows)
    tasks = list(dict.fromkeys(task for _, row in named_rows for task in row["tasks"]))
    lines = [
        [
            name,
            number(row["cost"], 3),
            number(row["prompt_cost"], 3),
            _percent(row["mean_above_chance"]),
            *(number(row["tasks"][task]["retained"], 1, 100) if task in row["tasks"] else "–" for task in tasks),
        ]
        for name, row in named_rows
    ]
    head = ["what skips", "cost, written", "cost, prompt", "mean above chance, %"]
    return markdown([*head, *(f"{task}, % of the base's" for task in tasks)], lines)


def difference_table(rows: Sequence[Figures]) -> str:
    """One line per baseline: points of score above chance (100 is all of the base's), and tasks won and lost."""
    lines = []
    for row in rows:
        over = row.get("adaptive_over_this")
        if over is None:
            continue
        better = [task for task, diff in over["tasks"].items() if (diff["low"] or 0) > 0 and not _falls(row, task)]
        worse = [task for task, diff in over["tasks"].items() if (diff["high"] or 0) < 0 and not _falls(row, task)]
        lines.append(
            [row["name"], number(row["cost"], 3), _percent(over), ", ".join(better) or "–", ", ".join(worse) or "–"]
        )
    head = ["against", "its true cost", "difference above chance, points", "better on", "worse on"]
    return markdown(head, lines)


def _score(row: Figures, task: str) -> str:
    figures = row["tasks"].get(task)
    if figures is None:
        return "–"
    factor, digits = (100, 1) if figures["kind"] == "mean" else (1, 2)
    text = f"{factor * figures['score']:.{digits}f}"
    if figures["stderr"] is not None and figures["stderr"] == figures["stderr"]:
        text += f" ±{factor * figures['stderr']:.{digits}f}"
    if row["name"] == "base":
        return text
    return f"{text} ({number(figures['retained'], 0, 100)}; {number(figures['dense_share'], 0, 100)})"


def _form(results: Figures) -> str:
    """How contexts ran, and perplexities."""
    read = results["arguments"]["prompt_budget"]
    whole = "perplexity of text is always in the form of the papers: all of it skips"
    return f"Contexts are read at prompt_budget {read}; {whole}"


def _falls(row: Figures, task: str) -> bool:
    """Is less better? Such tasks are told by their own figures."""
    return row["tasks"][task]["kind"] != "mean"


def _why(figures: Figures) -> str:
    if figures["kind"] != "mean":
        return figures["metric"]
    if figures["chance"] is None or figures["chance"] != figures["chance"]:
        return "chance not known"
    return f"{100 * figures['score']:.1f}, chance {100 * figures['chance']:.1f}"


def _percent(interval: Figures) -> str:
    if number(interval["mean"], 1) == "–":
        return "–"
    mean = f"{100 * interval['mean']:.1f}"
    if interval["low"] is None or interval["low"] != interval["low"] or interval["low"] == interval["high"]:
        return mean
    return f"{mean} ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"
