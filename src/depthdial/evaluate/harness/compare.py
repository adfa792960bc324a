"""Rows side by side on the same items: what is retained of the base, and differences with honest intervals.

All intervals are 95 % bootstrap intervals over items, the same items drawn for every row (paired), task by task.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from depthdial.evaluate.harness.items import TaskRecord
from depthdial.evaluate.subjects import TableRow

DRAWS = 2000
ABOVE = 5.0
"""A task counts where the base is this many standard errors above chance; below, a ratio would be noise."""
Records = Mapping[str, TaskRecord]
"""Of one row, by task."""


class Resamples:
    """Scores of a task in `DRAWS` resamples of its items; the same resamples for every row."""

    def __init__(self, draws: int = DRAWS):
        self._draws = draws
        self._weights: dict[tuple[str, int], np.ndarray] = {}

    def scores(self, record: TaskRecord) -> np.ndarray:
        """[DRAWS]; nan for a score that is not made of its items' scores."""
        count = len(record.values)
        if record.kind == "other" or not count:
            return np.full(self._draws, math.nan)
        weights = self._of(record.task, count)
        values = np.asarray(record.values, dtype=float)
        if record.kind == "mean":
            return weights @ values / count
        return np.exp(-(weights @ values[:, 0]) / (weights @ values[:, 1]))

    def _of(self, task: str, count: int) -> np.ndarray:
        """How often each item is drawn: [DRAWS, items]."""
        if (task, count) not in self._weights:
            random = np.random.default_rng(zlib.crc32(task.encode()))
            self._weights[task, count] = random.multinomial(count, np.full(count, 1 / count), self._draws).astype(float)
        return self._weights[task, count]


def counts(base: TaskRecord) -> bool:
    """Is the base far enough above chance that a share of it says something?"""
    above = base.score - base.chance
    return base.kind == "mean" and base.higher_is_better and above > 0 and above >= ABOVE * base.stderr


def summary(rows: Sequence[TableRow], records: Mapping[str, Records], draws: int = DRAWS) -> list[dict[str, Any]]:
    """The rows of the table, in order. records: by row's name; tasks that the base has not run are left out."""
    resamples, base = Resamples(draws), records["base"]
    adaptive = {row.budget: records.get(row.name, {}) for row in rows if row.kind == "adaptive"}
    return [_row(row, records[row.name], base, adaptive, resamples) for row in rows if records.get(row.name)]


def _row(
    row: TableRow, own: Records, base: Records, adaptive: Mapping[float, Records], draws: Resamples
) -> dict[str, Any]:
    tasks = [task for task in own if task in base]
    entry: dict[str, Any] = {
        "name": row.name,
        "kind": row.kind,
        "budget": row.budget,
        "part": row.part,
        "cost": _known_mean([own[task].cost for task in tasks]),
        "prompt_cost": _known_mean([own[task].prompt_cost for task in tasks]),
        "layers_prompt": _layers(own, tasks, "prompt"),
        "layers_answer": _layers(own, tasks, "answer"),
        "seconds": sum(own[task].seconds for task in tasks),
        "cpu_seconds": sum(own[task].cpu_seconds for task in tasks),
        "tasks": {task: _task(own[task], base[task], draws) for task in tasks},
    }
    accuracies = [task for task in tasks if base[task].kind == "mean" and base[task].score > 0]
    above = [task for task in tasks if counts(base[task])]
    entry["mean_retained"] = _interval(
        [own[task].score / base[task].score for task in accuracies],
        [_share(draws.scores(own[task]), draws.scores(base[task])) for task in accuracies],
    )
    entry["mean_above_chance"] = _interval(
        [_above(own[task].score, base[task].score, own[task].chance) for task in above],
        [_above(draws.scores(own[task]), draws.scores(base[task]), own[task].chance) for task in above],
    )
    entry["counted"], entry["at_chance"] = above, [task for task in tasks if task not in above]
    beside = adaptive.get(row.budget, {})
    common = [task for task in above if task in beside]
    if row.kind == "baseline" and common:
        entry["adaptive_over_this"] = {
            **_interval(
                [(beside[t].score - own[t].score) / (base[t].score - base[t].chance) for t in common],
                [
                    (draws.scores(beside[t]) - draws.scores(own[t])) / (draws.scores(base[t]) - base[t].chance)
                    for t in common
                ],
            ),
            "tasks": {task: _difference(beside[task], own[task], draws) for task in tasks if task in beside},
        }
    return entry


def _task(own: TaskRecord, base: TaskRecord, draws: Resamples) -> dict[str, Any]:
    ratio = own.score / base.score if base.score else math.nan
    return {
        "metric": own.metric,
        "kind": own.kind,
        "items": len(own.values),
        "score": own.score,
        "stderr": own.stderr,
        "chance": own.chance,
        "retained": ratio if own.higher_is_better or not ratio else 1 / ratio,
        "above_chance": _above(own.score, base.score, own.chance) if counts(base) else math.nan,
        "over_base": _difference(own, base, draws),
        "cost": own.cost,
        "prompt_cost": own.prompt_cost,
        "dense_share": own.dense_share,
        "layers_prompt": own.prompt.layers / own.prompt.tokens if own.prompt.tokens else math.nan,
        "layers_answer": own.answer.layers / own.answer.tokens if own.answer.tokens else math.nan,
        "tokens_prompt": own.prompt.tokens,
        "tokens_answer": own.answer.tokens,
        "seconds": own.seconds,
        "cpu_seconds": own.cpu_seconds,
        "scores": own.scores,
    }


def _share(scores: np.ndarray, base: np.ndarray) -> np.ndarray:
    """nan in draws that hold nothing that the base got right: no share of nothing."""
    return scores / np.where(base > 0, base, math.nan)


def _above(score: Any, base: Any, chance: float) -> Any:
    return (score - chance) / (base - chance)


def _difference(one: TaskRecord, other: TaskRecord, draws: Resamples) -> dict[str, float]:
    """one - other on the same items."""
    if len(one.values) != len(other.values):
        raise ValueError(f"task {one.task} has {len(one.values)} and {len(other.values)} items in two rows of one run")
    return _interval([one.score - other.score], [draws.scores(one) - draws.scores(other)])


def _interval(means: Sequence[float], draws: Sequence[np.ndarray]) -> dict[str, float]:
    """The mean, and where it lies in 95 % of the draws."""
    if not means:
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    low, high = np.nanpercentile(np.mean(draws, axis=0), [2.5, 97.5]) if _finite(draws) else (math.nan,) * 2
    return {"mean": _mean(means), "low": float(low), "high": float(high)}


def _finite(draws: Sequence[np.ndarray]) -> bool:
    return bool(np.isfinite(np.mean(draws, axis=0)).any())


def _layers(own: Records, tasks: Sequence[str], which: str) -> float:
    """Mean over tasks of the layers a token used."""
    counts = [getattr(own[task], which) for task in tasks]
    return _mean([ran.layers / ran.tokens for ran in counts if ran.tokens])


def _known_mean(values: Sequence[float]) -> float:
    """Of the values that are known."""
    return _mean([value for value in values if not math.isnan(value)])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
