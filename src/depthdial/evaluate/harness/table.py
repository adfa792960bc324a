"""Results of an evaluation as Markdown. `results` is what `run.run` gives, read back from JSON or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthdial.evaluate.markdown import markdown

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
    shown = {task: next(row["tasks"][task] for row in rows if task in row["tasks"]) for task in tasks}
    head = ["", *(f"{task}, {told['metric']} (n = {told['items']})" for task, told in shown.items())]
    return markdown(head, [[row["name"], *(_score(row, task) for task in tasks)] for row in rows])


def cost_table(results: Figures) -> str:
    """One line per row: true cost, layers, means of what is retained, wall clock."""
    head = [
        "",
        "cost, written",
        "cost, prompt",
        f"layers of {results['layers']}, prompt",
        "layers, answer",
        "mean retained, %",
        "mean above chance, %",
        "seconds",
        "of processor",
    ]
    lines = [
        [
            row["name"],
            _number(row["cost"], 3),
            _number(row["prompt_cost"], 3),
            _number(row["layers_prompt"], 1),
            _number(row["layers_answer"], 1),
            _percent(row["mean_retained"]),
            _percent(row["mean_above_chance"]),
            _number(row["seconds"], 0),
            _number(row["cpu_seconds"], 0),
        ]
        for row in results["rows"]
    ]
    return markdown(head, lines)


def where_table(rows: Sequence[Figures]) -> str:
    """One line per row: the base, and for each budget the answer alone, the prompt alone, and both."""
    named = {"": "answer only", "prompt": "prompt only", "both": "prompt and answer"}
    shown = [row for row in rows if row["kind"] in ("base", "adaptive", "where")]
    shown.sort(key=lambda row: (-row["budget"], list(named).index(row["part"])))
    tasks = list(dict.fromkeys(task for row in shown for task in row["tasks"]))
    lines = [
        [
            "nothing" if row["kind"] == "base" else f"{named[row['part']]} {row['budget']:g}",
            _number(row["cost"], 3),
            _number(row["prompt_cost"], 3),
            _percent(row["mean_above_chance"]),
            *(_number(row["tasks"][task]["retained"], 1, 100) if task in row["tasks"] else "–" for task in tasks),
        ]
        for row in shown
    ]
    head = ["what skips", "cost, written", "cost, prompt", "mean above chance, %"]
    return markdown([*head, *(f"{task}, % of the base's" for task in tasks)], lines)


def difference_table(rows: Sequence[Figures]) -> str:
    """One line per baseline: points of score above chance (100 is all of the base's), and tasks won and lost."""
    lines = []
    for row in rows:
        told = row.get("adaptive_over_this")
        if told is None:
            continue
        won = [task for task, found in told["tasks"].items() if (found["low"] or 0) > 0 and not _falls(row, task)]
        lost = [task for task, found in told["tasks"].items() if (found["high"] or 0) < 0 and not _falls(row, task)]
        lines.append(
            [row["name"], _number(row["cost"], 3), _percent(told), ", ".join(won) or "–", ", ".join(lost) or "–"]
        )
    head = ["against", "its true cost", "difference above chance, points", "better on", "worse on"]
    return markdown(head, lines)


def _score(row: Figures, task: str) -> str:
    told = row["tasks"].get(task)
    if told is None:
        return "–"
    factor, digits = (100, 1) if told["kind"] == "mean" else (1, 2)
    text = f"{factor * told['score']:.{digits}f}"
    if told["stderr"] is not None and told["stderr"] == told["stderr"]:
        text += f" ±{factor * told['stderr']:.{digits}f}"
    if row["name"] == "base":
        return text
    return f"{text} ({_number(told['retained'], 0, 100)}; {_number(told['dense_share'], 0, 100)})"


def _form(results: Figures) -> str:
    """How contexts ran, and perplexities."""
    read = results["arguments"]["prompt_budget"]
    whole = "perplexity of text is always in the form of the papers: all of it skips"
    return f"Contexts are read at prompt_budget {read}; {whole}"


def _falls(row: Figures, task: str) -> bool:
    """Is less better? Such tasks are told by their own figures."""
    return row["tasks"][task]["kind"] != "mean"


def _why(told: Figures) -> str:
    if told["kind"] != "mean":
        return told["metric"]
    if told["chance"] is None or told["chance"] != told["chance"]:
        return "chance not known"
    return f"{100 * told['score']:.1f}, chance {100 * told['chance']:.1f}"


def _percent(told: Figures) -> str:
    if told["mean"] is None or told["mean"] != told["mean"]:
        return "–"
    mean = f"{100 * told['mean']:.1f}"
    if told["low"] is None or told["low"] != told["low"] or told["low"] == told["high"]:
        return mean
    return f"{mean} ({100 * told['low']:.1f} to {100 * told['high']:.1f})"


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "–" if value is None or value != value else f"{factor * value:.{digits}f}"
