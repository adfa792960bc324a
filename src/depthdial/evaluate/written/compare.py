"""Rows side by side on the same prompts: figures, and differences with paired intervals.

All intervals are 95 % bootstrap intervals over prompts (those of one `group` together), the same ones drawn for every
row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthdial.core.dial import PromptBudget
from depthdial.evaluate.subjects import TableRow
from depthdial.evaluate.written.answers import Answer
from depthdial.evaluate.written.equal import cost_of
from depthdial.evaluate.written.figures import FIGURES, Sums, figures, furthest
from depthdial.maps.bootstrap import Bootstrap, Estimate
from depthdial.maps.prompts import Prompt

OVER_BASE = tuple(name for name in FIGURES if name not in ("cost", "prompt_cost", "chrf"))
"""Figures that are told as differences from the base's."""
OVER_BASELINE = (*OVER_BASE, "chrf")
"""Figures by which the plug-in is compared with a baseline."""


@dataclass(frozen=True)
class AnswerSet:
    """One row's answers, as they are kept."""

    budgets: list[float]
    """Of each prompt: asked for, of what is written."""
    prompt_budget: PromptBudget | None
    """Asked for, of what is read."""
    answers: list[Answer]
    seconds: float
    """Of the engine's work in writing them, by the clock on the wall."""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "answers": [vars(answer) for answer in self.answers]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AnswerSet:
        return cls(**{**data, "answers": [Answer(**answer) for answer in data["answers"]]})

    @property
    def cost(self) -> float:
        """Mean true cost of what was written."""
        return cost_of(self.answers)


def summary(
    rows: Sequence[TableRow], records: Mapping[str, AnswerSet], prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """The rows of the table, in order; those without a record are left out. records: by row's name, "base" among
    them."""
    rows = [row for row in rows if row.name in records]
    sums = [figures(records[row.name].answers, records["base"].answers) for row in rows]
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(p.group or p.id, len(numbers)) for p in prompts], np.int64)
    bootstrap = Bootstrap(groups)
    estimates = {
        name: bootstrap.ratios(_columns(sums, name, "values"), _columns(sums, name, "weights")) for name in FIGURES
    }
    base = next(i for i, row in enumerate(rows) if row.kind == "base")
    adaptive = {row.budget: i for i, row in enumerate(rows) if row.kind == "adaptive"}
    entries = [_row(row, records[row.name], estimates, i, base) for i, row in enumerate(rows)]
    for i, row in enumerate(rows):
        entries[i]["by_task"] = _by_task(sums[i], prompts)
        if row.kind == "baseline" and (beside := adaptive.get(row.budget)) is not None:
            entries[i]["adaptive_over_this"] = {
                name: estimates[name].difference(beside, i).to_json() for name in OVER_BASELINE
            }
    return entries


def _row(row: TableRow, record: AnswerSet, estimates: Mapping[str, Estimate], i: int, base: int) -> dict[str, Any]:
    tokens = sum(len(answer.token_ids) for answer in record.answers)
    return {
        **{name: getattr(row, name) for name in ("name", "kind", "subject", "budget", "part")},
        "asked": {"budget": float(np.mean(record.budgets)), "prompt_budget": record.prompt_budget},
        "texts": len(record.answers),
        "tokens": tokens,
        "seconds": record.seconds,
        "tokens_per_second": tokens / record.seconds if record.seconds else None,
        **{name: estimate.interval(i).to_json() for name, estimate in estimates.items()},
        "over_base": {name: estimates[name].difference(i, base).to_json() for name in OVER_BASE},
        "furthest_from_budget": furthest(record.answers, record.budgets),
    }


def _columns(sums: Sequence[Mapping[str, Sums]], name: str, which: str) -> np.ndarray:
    """[texts, rows]"""
    return np.stack([getattr(own[name], which) for own in sums], 1)


def _by_task(own: Mapping[str, Sums], prompts: Sequence[Prompt]) -> dict[str, dict[str, float | None]]:
    """Figures of each kind of prompt, without intervals; null where nothing is counted."""
    tasks = np.array([prompt.task for prompt in prompts])
    by_task: dict[str, dict[str, float | None]] = {}
    for task in dict.fromkeys(tasks.tolist()):
        where = tasks == task
        sums = {name: (s.values[where].sum(), s.weights[where].sum()) for name, s in own.items()}
        by_task[task] = {name: float(value / weight) if weight else None for name, (value, weight) in sums.items()}
    return by_task
