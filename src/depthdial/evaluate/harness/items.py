"""One task at one setting: what the harness makes of our model's answers, item by item."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from lm_eval.api.metrics import mean, perplexity, weighted_perplexity
from lm_eval.evaluator import evaluate

from depthdial.engine.score import Ran
from depthdial.evaluate.harness.lm import DepthLM
from depthdial.evaluate.harness.setting import Setting
from depthdial.evaluate.harness.tasks import FEWSHOT_SEED, Suite
from depthdial.evaluate.store import Store

PREFERRED = ("acc_norm", "acc", "f1", "exact_match", "word_perplexity")
"""Of the metrics of a task the one that its line shows; of others the first. The rest is in the JSON."""
Kind = Literal["mean", "perplexity", "other"]


@dataclass(frozen=True)
class TaskRecord:
    """A task at one setting, as it is kept in the output folder."""

    task: str
    metric: str
    kind: Kind
    """"mean": `values` are the items' scores. "perplexity": (log-likelihood, weight) pairs. "other": a figure of all
    items together, which no item has alone."""
    higher_is_better: bool
    score: float
    chance: float
    """What guessing would score; nan where that is not known."""
    values: list[Any]
    prompt: Ran
    answer: Ran
    tokens: int
    dense: int
    """See `lm.Tally`."""
    seconds: float
    cpu_seconds: float
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """All metrics of all parts, as the harness aggregates them."""

    @property
    def cost(self) -> float:
        """Mean true cost, relative to dense, of the tokens that were written (or scored as if they had been) and ran;
        nan where all answers have one token."""
        return self.answer.cost / self.answer.tokens if self.answer.tokens else math.nan

    @property
    def prompt_cost(self) -> float:
        """The same of the tokens that were read."""
        return self.prompt.cost / self.prompt.tokens if self.prompt.tokens else math.nan

    @property
    def dense_share(self) -> float:
        """Share of the scored tokens whose logits the untouched base gave."""
        return self.dense / self.tokens if self.tokens else math.nan

    @property
    def stderr(self) -> float:
        """Of the score; nan where it is not known."""
        count = len(self.values)
        if self.kind == "mean" and count > 1:
            return float(np.std(self.values, ddof=1) / math.sqrt(count))
        if self.kind == "perplexity" and count > 1:  # the delta method on a ratio of sums
            values = np.asarray(self.values, dtype=float)
            rest = -values[:, 0] - math.log(self.score) * values[:, 1]
            return float(self.score * math.sqrt(count * np.var(rest, ddof=1)) / values[:, 1].sum())
        return math.nan

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskRecord:
        chance = math.nan if data["chance"] is None else data["chance"]
        return cls(**{**data, "chance": chance, "prompt": Ran(*data["prompt"]), "answer": Ran(*data["answer"])})


def measure_task(
    suite: Suite, lm: DepthLM, setting: Setting, store: Store, limit: float | None, run_code: bool = False
) -> TaskRecord:
    """Run a task. limit: items of the whole task, the first ones, or below 1 their share. store: chunks of this task at
    this setting."""
    for task in suite.parts.values():  # its draws go on where they stopped: each row would see other examples
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    tally = lm.begin(setting, store)
    output: dict[str, Any] = evaluate(  # pyright: ignore[reportAssignmentType]
        lm=lm,
        task_dict={"tasks": suite.parts, "groups": {}, "group_map": {}},
        limit=suite.limit(limit),  # pyright: ignore[reportArgumentType] - below 1 it is the harness's share, too
        bootstrap_iters=0,
        log_samples=True,
        confirm_run_unsafe_code=run_code,
    )
    name, filter_ = _primary(output["samples"])
    task: Any = next(iter(suite.parts.values()))
    samples = [item for part in output["samples"].values() for item in part if item["filter"] == filter_]
    values = [_plain(item[name]) for item in samples]
    kind, score = _aggregate(task.aggregation().get(name) or task.aggregation().get(name.split("@")[0]), values)
    scores = {part: _numbers(figures) for part, figures in output["results"].items()}
    if kind == "other":
        score = float(np.mean([figures[f"{name},{filter_}"] for figures in scores.values()]))
    return TaskRecord(
        task=suite.name,
        metric=name if filter_ == "none" else f"{name}, {filter_}",
        kind=kind,
        higher_is_better=bool(task.higher_is_better().get(name, True)),
        score=score,
        chance=_chance(task.OUTPUT_TYPE, name, samples),
        values=values,
        prompt=tally.prompt,
        answer=tally.answer,
        tokens=tally.tokens,
        dense=tally.dense,
        seconds=tally.seconds,
        cpu_seconds=tally.cpu_seconds,
        scores=scores,
    )


def _primary(samples: dict[str, list[dict[str, Any]]]) -> tuple[str, str]:
    """The metric that is shown, and the filter before it; of a group one that all parts have."""
    each = [
        dict.fromkeys((name, item["filter"]) for item in part for name in item["metrics"]) for part in samples.values()
    ]
    common = [pair for pair in each[0] if all(pair in other for other in each)]
    for preferred in PREFERRED:
        for name, filter_ in common:
            if name == preferred:
                return name, filter_
    return common[0]


def _aggregate(how: Any, values: list[Any]) -> tuple[Kind, float]:
    numbers = all(isinstance(value, int | float) for value in values)
    if numbers and how in (mean, None):
        return "mean", float(np.mean(values))
    if how is weighted_perplexity:
        return "perplexity", math.exp(-sum(v[0] for v in values) / sum(v[1] for v in values))
    if how is perplexity:
        values[:] = [[value, 1] for value in values]
        return "perplexity", math.exp(-sum(v[0] for v in values) / len(values))
    return "other", math.nan


def _chance(output_type: str, metric: str, samples: list[dict[str, Any]]) -> float:
    """What guessing scores; nan where a choice is not just right or wrong (mass on the true ones of many)."""
    if output_type != "multiple_choice" or metric not in ("acc", "acc_norm"):
        return 0.0
    if any(item[metric] not in (0, 1) for item in samples):
        return math.nan
    return float(np.mean([1 / len(item["filtered_resps"]) for item in samples]))


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, bool | int | float | np.generic) else value


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, int | float | np.generic) and "stderr" not in name and math.isfinite(float(value))
    }
