"""Retained shares, intervals and differences, by numbers that can be worked out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depthdial.engine.score import Ran
from depthdial.evaluate.harness.compare import Resamples, counts, summary
from depthdial.evaluate.harness.items import TaskRecord
from depthdial.evaluate.subjects import TableRow

BASE, ADAPTIVE, RANDOM = (
    TableRow("base", "base", "flexidepth", 1.0),
    TableRow("flexidepth 0.8", "adaptive", "flexidepth", 0.8),
    TableRow("random 0.8", "baseline", "random", 0.8),
)


def record(task: str, values, chance: float = 0.0, cost: float = 1.0, **fields) -> TaskRecord:
    told = {
        "metric": "acc", "kind": "mean", "higher_is_better": True, "score": float(np.mean(values)), "chance": chance,
        "prompt": Ran(10, 300, 10.0), "answer": Ran(10, 200, 10 * cost), "tokens": 12, "dense": 2,
        "seconds": 1.0, "cpu_seconds": 2.0,
    }  # fmt: skip
    return TaskRecord(task=task, values=list(values), **{**told, **fields})


def test_means_are_those_of_the_paper_and_above_chance():
    ones, half = [1.0] * 99 + [0.0], [1.0, 0.0] * 50
    base = {"a": record("a", ones, 0.25), "b": record("b", ones)}
    own = {"a": record("a", half, 0.25, 0.8), "b": record("b", ones, 0.0, 0.9)}
    _, row = summary([BASE, ADAPTIVE], {"base": base, "flexidepth 0.8": own})
    assert row["mean_retained"]["mean"] == pytest.approx((0.5 / 0.99 + 1) / 2)
    assert row["mean_above_chance"]["mean"] == pytest.approx((0.25 / 0.74 + 1) / 2)
    assert row["cost"] == pytest.approx(0.85) and row["layers_prompt"] == 30 and row["layers_answer"] == 20
    assert row["seconds"] == 2 and row["cpu_seconds"] == 4
    low, high = (row["mean_above_chance"][name] for name in ("low", "high"))
    assert low < row["mean_above_chance"]["mean"] < high and 0.05 < high - low < 0.3


def test_the_base_against_itself_is_one_without_doubt():
    base = {"a": record("a", [1.0] * 60 + [0.0] * 40)}
    (row,) = summary([BASE], {"base": base})
    assert row["mean_retained"] == {"mean": 1.0, "low": 1.0, "high": 1.0} == row["mean_above_chance"]
    assert row["tasks"]["a"]["over_base"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_a_base_that_got_one_item_right_makes_no_boundless_interval():
    base, own = np.eye(164)[0], np.eye(164)[1]
    first, row = summary(
        [BASE, ADAPTIVE], {"base": {"a": record("a", base)}, "flexidepth 0.8": {"a": record("a", own)}}
    )
    assert first["mean_retained"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert row["mean_retained"]["mean"] == 1 and row["mean_retained"]["high"] <= 8


def test_items_are_paired():
    """Rows that differ on few items have a narrow interval, though each score alone is uncertain."""
    random = np.random.default_rng(0)
    base = (random.random(400) < 0.5).astype(float)
    near = base.copy()
    near[:4] = 0
    far = random.permutation(base)
    picture = Resamples()

    def width(one, other):
        differences = picture.scores(record("a", one)) - picture.scores(record("a", other))
        return float(np.percentile(differences, 97.5) - np.percentile(differences, 2.5))

    assert width(near, base) < 0.02 < 0.1 < width(far, base)
    expected = 2 * 1.96 * math.sqrt(np.var(far - base) / 400)
    assert width(far, base) == pytest.approx(expected, rel=0.15)


def test_at_chance_is_below_five_standard_errors():
    assert counts(record("a", [1.0] * 70 + [0.0] * 30, 0.25))
    assert not counts(record("a", [1.0] * 70 + [0.0] * 30, 0.5))
    assert not counts(record("a", [0.0] * 100))
    assert counts(record("a", [1.0] * 9, 0.25)), "all right, so no doubt"
    assert not counts(record("a", [1.0] * 9, math.nan))
    assert not counts(record("a", [[-1.0, 2]] * 9, kind="perplexity", higher_is_better=False, score=1.6))


def test_a_baseline_stands_beside_the_row_of_its_budget():
    random = np.random.default_rng(1)
    base = (random.random(300) < 0.9).astype(float)
    good, bad = base.copy(), base.copy()
    good[:6], bad[:90] = 0, 0
    records = {
        "base": {"a": record("a", base)},
        "flexidepth 0.8": {"a": record("a", good)},
        "random 0.8": {"a": record("a", bad)},
    }
    told = summary([BASE, ADAPTIVE, RANDOM], records)[2]["adaptive_over_this"]
    assert told["mean"] == pytest.approx((good.mean() - bad.mean()) / base.mean()) and told["low"] > 0
    assert told["tasks"]["a"]["low"] > 0
    assert "adaptive_over_this" not in summary([BASE, ADAPTIVE, RANDOM], records)[1]


def test_perplexity_is_retained_the_other_way_round_and_in_no_mean():
    def told(nats: float) -> TaskRecord:
        values = [[-nats * n, n] for n in (10, 20, 30)]
        return record("w", values, kind="perplexity", higher_is_better=False, score=math.exp(nats))

    base, own = told(2.0), told(2.5)
    _, row = summary([BASE, ADAPTIVE], {"base": {"w": base}, "flexidepth 0.8": {"w": own}})
    assert row["tasks"]["w"]["retained"] == pytest.approx(math.exp(-0.5))
    assert row["at_chance"] == ["w"] and math.isnan(row["mean_retained"]["mean"])
    assert row["tasks"]["w"]["over_base"]["mean"] == pytest.approx(math.exp(2.5) - math.exp(2.0))


def test_rows_that_have_run_only_some_tasks_are_told_by_those():
    base = {"a": record("a", [1.0] * 9 + [0.0]), "b": record("b", [1.0] * 9 + [0.0])}
    _, row = summary([BASE, ADAPTIVE, RANDOM], {"base": base, "flexidepth 0.8": {"b": base["b"]}})
    assert list(row["tasks"]) == ["b"] and row["mean_retained"]["mean"] == 1


def test_different_items_are_refused():
    records = {"base": {"a": record("a", [1.0, 0.0])}, "flexidepth 0.8": {"a": record("a", [1.0])}}
    with pytest.raises(ValueError, match="1 and 2 items"):
        summary([BASE, ADAPTIVE], records)


def test_standard_errors():
    assert record("a", [1.0, 0.0, 1.0, 1.0]).stderr == pytest.approx(0.25)
    random = np.random.default_rng(2)
    values = [
        [-float(n * x), int(n)] for n, x in zip(random.integers(5, 50, 500), random.normal(2, 0.3, 500), strict=True)
    ]
    score = math.exp(-sum(v[0] for v in values) / sum(v[1] for v in values))
    told = record("w", [0.0])
    wide = TaskRecord(**{**vars(told), "values": values, "kind": "perplexity", "score": score})
    assert wide.stderr == pytest.approx(float(np.std(Resamples().scores(wide))), rel=0.1)
