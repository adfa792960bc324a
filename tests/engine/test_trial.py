"""Trials: timed decode passes on a tiny engine, which is as it was afterwards."""

from __future__ import annotations

import math

import pytest

from depthdial.engine import trial
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.trial import STEPS, Trials, break_even


@pytest.fixture(scope="module")
def llm(tiny_model, tiny_tokenizer, adaptive) -> LLM:
    return LLM.of(adaptive(tiny_model()), tiny_tokenizer, max_batch=4)


def test_a_trial_times_decode_passes_and_tells_their_cost(llm):
    times = iter([10.0, 16.0] * 2)
    trials = Trials(llm.engine, llm.tokenizer, clock=lambda: next(times))
    before = llm.stats.tokens
    skipping, dense = trials(3, 0.0), trials(4, math.inf)
    assert skipping.seconds == dense.seconds == 6.0 / STEPS
    assert 0 < skipping.cost < 1.01 and dense.cost == 1.0
    assert llm.stats.tokens > before


def test_the_engine_is_idle_afterwards_and_its_cache_unharmed(llm):
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    before = llm.generate([[5, 6, 7]], params)[0].token_ids
    Trials(llm.engine, llm.tokenizer)(4, -1.0)
    assert llm.engine.scheduler.idle
    assert llm.generate([[5, 6, 7]], params)[0].token_ids == before


def test_the_break_even_of_an_engine_is_kept_for_its_machine(llm, tmp_path, monkeypatch):
    found = break_even(llm.engine, llm.model, llm.tokenizer, [-2.0, 0.5], tmp_path)
    assert {point.rows for point in found.points} == {1, 4} and found.floor < 1 < found.top
    assert found.key["runner"] == type(llm.engine.runner).__name__ and found.key["dtype"] == "torch.float32"
    monkeypatch.setattr(trial, "measure", lambda *_: pytest.fail("measured again"))
    assert break_even(llm.engine, llm.model, llm.tokenizer, [-2.0, 0.5], tmp_path) == found
    assert llm.engine.runner.break_even == found, "the engine goes by it"


def test_a_pass_that_fails_says_so(llm, monkeypatch):
    def fail(_batch):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(llm.engine.runner, "run", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        Trials(llm.engine, llm.tokenizer)(2, 0.0)
