"""Tables in Markdown, and what those of evaluations share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_PARTS = {"": "answer only", "prompt": "prompt only", "both": "prompt and answer"}


def markdown(head: Sequence[object], lines: Sequence[Sequence[object]]) -> str:
    """A table: its head, and a line for each row."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)


def number(value: float | None, digits: int, factor: float = 1) -> str:
    """A dash where it is not known."""
    return "–" if value is None or value != value else f"{factor * value:.{digits}f}"


def what_skips(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The base, and for each budget the answer alone, the prompt alone, and both: what skips, and the row."""
    kinds = [row for row in rows if row["kind"] in ("base", "adaptive", "where")]
    kinds.sort(key=lambda row: (-row["budget"], list(_PARTS).index(row["part"])))
    return [("nothing" if r["kind"] == "base" else f"{_PARTS[r['part']]} {r['budget']:g}", r) for r in kinds]
