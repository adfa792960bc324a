"""Results of a speed benchmark as one Markdown table and a few lines about the run. `results`: see `bench`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depthdial.evaluate.markdown import markdown, number
from depthdial.evaluate.speed.subjects import title

Figures = Mapping[str, Any]
_HEAD = ("", "true cost", "first token", "tokens/s", "low to high", "x our dense", "ideal x", "of ideal", "of limit")


def speed_table(results: Figures) -> str:
    """All rows, regime by regime: the cost that tokens really had (written ones; in prefill the prompt's), the time to
    the first one, speed, its ratio to our dense engine at the same precision (of narrow dense ones, to that at
    the model's own), the ideal ratio of its route, and how near speed comes to ideal and to the machine's limit."""
    lines, before = [], None
    for row in results["rows"]:
        if (name := regime_name(row)) != before:
            lines.append([f"**{name}**", *[""] * (len(_HEAD) - 1)])
            before = name
        lines.append(_cells(row))
    return markdown(_HEAD, lines)


def regime_name(row: Figures) -> str:
    return f"decode, batch {row['batch']}" if row["regime"] == "decode" else f"prefill {row['prompt_tokens']}"


def row_name(row: Figures) -> str:
    name = title(row["name"], row["budget"], row["prompt_budget"], row["precision"])
    return name if row.get("stop") is None else f"{name} (stop {row['stop']:.3f})"


def machine_lines(results: Figures) -> str:
    """Where, with what, and at which limits it was measured."""
    machine, versions = results["machine"], results["versions"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [f"{results['model']} on {where}; {libraries}; commit {results['commit'] or 'unknown'}"]
    lines += [f"not measured: {name} ({reason})" for name, reason in results["left_out"].items()]
    for entry in results["limits"]:
        lines.append(
            f"limits in {regime_name(entry)}: {entry['read_gigabytes_per_second']:.1f} GB/s read, "
            f"{2 * entry['gigamacs_per_second']:.0f} GFLOP/s"
        )
    for entry in results.get("verify", []):
        ratios = ", ".join(f"{count} tokens {ratio:.2f}" for count, ratio in entry["over_one"].items() if count != "1")
        lines.append(f"verify / one step, {entry['title']} ({1000 * entry['seconds']['1']:.1f} ms): {ratios}")
    return "\n".join(lines)


def break_even_lines(facts: Figures) -> str:
    """Up to which true cost skipping pays, by number of rows in a pass."""
    lines = ["rows in a pass | skipping pays up to a true cost of | and a kept share of", "---|---|---"]
    for entry in facts["highest"]:
        lines.append(f"{entry['rows']} | {entry['cost']:.3f} | {entry['share']:.2f}")
    return "\n".join(lines)


def _cells(row: Figures) -> list[str]:
    if "missing" in row:
        return [row_name(row), f"not measured: {row['missing']}", *[""] * (len(_HEAD) - 2)]
    speed = row["tokens_per_second"]
    return [
        row_name(row),
        number(row.get("cost"), 3),
        _seconds(row["first_token_seconds"]["median"]),
        _rate(speed["median"]),
        f"{_rate(speed['low'])} to {_rate(speed['high'])}",
        number(row["speedup"], 2),
        number(row.get("ideal_speedup"), 2),
        _share(row.get("of_ideal")),
        _share(row.get("of_limit")),
    ]


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
