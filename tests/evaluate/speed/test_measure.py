"""Interleaved repeats, on subjects that are told how long they take."""

from __future__ import annotations

import pytest

from depthdial.evaluate.speed.limits import MachineLimits
from depthdial.evaluate.speed.measure import RegimeRuns, run_interleaved, spread
from depthdial.evaluate.speed.subjects import Regime, SpeedSubject, TextRun, TimedRun

DECODE = Regime("decode", 2, 5, 9)
PREFILL = Regime("prefill", 1, 8, 1)


class Told(SpeedSubject):
    """Takes the seconds it is given, one after the other."""

    kind, precision = "baseline", "fp32"

    def __init__(self, name, seconds, log, optional=False, only=None):
        self.name, self.seconds, self.log, self.optional, self.only = name, list(seconds), log, optional, only

    def takes(self, regime):
        return self.only is None or regime.kind == self.only

    def run(self, prompts, new_tokens):
        self.log.append(self.name)
        seconds = self.seconds.pop(0)
        if seconds is None:
            raise OSError("no\n compiler")
        return TimedRun(seconds, seconds, (new_tokens - 1) * len(prompts), new_tokens - 1)


def test_everyone_is_warmed_up_and_takes_turns():
    log = []
    a, b = Told("a", [9, 1, 2, 4], log), Told("b", [9, 2, 2, 2], log)
    calls = []
    result = run_interleaved([a, b], [[1], [2]], DECODE, 3, lambda: MachineLimits(1, 2), lambda: calls.append(1))
    assert log == ["a", "b", "a", "b", "b", "a", "a", "b"] and len(calls) == 8
    assert result.rates("a, fp32") == [16, 8, 4] and result.rates("b, fp32") == [8, 8, 8]
    assert result.ratio("a, fp32", "b, fp32") == 1.0 and result.limits == MachineLimits(1, 2)


def test_an_optional_subject_may_fail_and_says_why():
    result = run_interleaved([Told("a", [None], [], optional=True), Told("b", [1, 1], [])], [[1]], PREFILL, 1)
    assert result.missing == {"a, fp32": "no compiler"} and list(result.runs) == ["b, fp32"]
    with pytest.raises(OSError, match="compiler"):
        run_interleaved([Told("a", [None], [])], [[1]], PREFILL, 1)


def test_a_regime_that_a_subject_does_not_take_is_left_out():
    result = run_interleaved([Told("a", [], [], only="decode")], [[1]], PREFILL, 1)
    assert not result.runs and not result.missing


def test_rates_and_costs_of_a_prompt_and_of_steps():
    run = TimedRun(2.0, 4.0, 16, 8, (TextRun([1] * 6, 3, 4, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [0.0] * 6),))
    assert run.rate(PREFILL) == 4.0 and run.rate(DECODE) == 4.0
    assert run.cost(PREFILL) == pytest.approx(0.6) and run.cost(DECODE) == pytest.approx(0.95)
    assert TimedRun(1, 1, 1, 1).cost(DECODE) is None
    assert RegimeRuns(DECODE, {"x": [run]}).rates("x") == [4.0]
    assert spread([3, 1, 2]) == {"median": 2, "low": 1, "high": 3}
