"""Rows on the same prompts: paired intervals, differences from the base and between a plug-in and its baselines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from depthdial.core.whole import plain
from depthdial.evaluate.subjects import TableRow
from depthdial.evaluate.written.compare import AnswerSet, summary
from depthdial.maps.prompts import Prompt

ROWS = [
    TableRow("base", "base", "x", 1.0),
    TableRow("x 0.8", "adaptive", "x", 0.8),
    TableRow("random 0.8", "baseline", "random", 0.8),
    TableRow("static 0.8", "baseline", "static", 0.8),
]


@pytest.fixture
def records(answer):
    """The base's log-probability varies from prompt to prompt; the others' differs from it by nearly a constant."""
    random = np.random.default_rng(0)
    level = random.normal(-2, 1, 40)
    result = {}
    for name, cost, less in (("base", 1.0, 0.0), ("x 0.8", 0.8, 0.1), ("random 0.8", 0.8, 0.4)):
        answers = [
            answer([int(i) for i in random.integers(0, 9, 20)], cost, float(own - less + 0.01 * random.normal()))
            for own in level
        ]
        result[name] = AnswerSet([cost] * 40, 1.0, answers, 2.0)
    return result


@pytest.fixture
def prompts():
    return [Prompt(f"p{i}", "x", "ab"[i % 2]) for i in range(40)]


def test_differences_are_paired(records, prompts):
    base, own, random = summary(ROWS, records, prompts)
    assert own["over_base"]["nll"]["mean"] == pytest.approx(0.1, abs=0.01)
    paired = own["over_base"]["nll"]["high"] - own["over_base"]["nll"]["low"]
    assert paired < 0.05 * (own["nll"]["high"] - own["nll"]["low"]), "what prompts have in common is gone"
    against = random["adaptive_over_this"]["nll"]
    assert against["low"] < -0.3 + 0.01 and against["high"] < 0 and "adaptive_over_this" not in own
    assert base["chrf"]["mean"] == 100 and own["chrf"]["mean"] < 100 and base["over_base"]["nll"]["mean"] == 0
    assert own["asked"] == {"budget": pytest.approx(0.8), "prompt_budget": 1.0} and own["tokens_per_second"] == 400


def test_kinds_of_prompts_are_told_apart(records, prompts):
    own = summary(ROWS, records, prompts)[1]
    assert list(own["by_task"]) == ["a", "b"]
    assert np.mean([own["by_task"][task]["nll"] for task in "ab"]) == pytest.approx(own["nll"]["mean"])


def test_prompts_of_one_group_are_one_draw(records):
    alike = [Prompt(f"p{i}", "x", "a", group="g") for i in range(40)]
    assert summary(ROWS, records, alike)[1]["nll"]["low"] is None


def test_records_come_back(records):
    record = records["x 0.8"]
    assert AnswerSet.from_json(json.loads(json.dumps(plain(record.to_json())))) == record
    assert record.cost == pytest.approx(0.8)
