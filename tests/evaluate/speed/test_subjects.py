"""Our engine as a subject: what is timed, and that it is what ran."""

from __future__ import annotations

import pytest

from depthdial.engine.llm import SamplingParams
from depthdial.evaluate.speed.subjects import EngineSubject, Kind, Regime
from depthdial.models.converted import converted_of

DECODE = Regime("decode", 2, 6, 8)
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]


def subject(llm, budget, ticks, kind: Kind = "adaptive", read=None, kinds=("decode", "prefill")):
    params = SamplingParams(budget=budget, prompt_budget=read)
    return EngineSubject("adaptive", kind, llm, params, "fp32", ticks, kinds)


def test_costs_and_tokens_are_those_of_generate(tiny_llm, ticks):
    llm = tiny_llm()
    run = subject(llm, 0.8, ticks).run(PROMPTS, 8)
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=8, ignore_eos=True, budget=0.8))
    assert run.first > 0 and run.rest > 0 and run.steps == 7 and run.tokens == 14
    for ran, out in zip(run.ran, outputs, strict=True):
        assert ran.tokens == out.prompt_token_ids + out.token_ids[:-1]
        assert ran.prompt == len(out.prompt_token_ids) == ran.start
        assert sum(ran.costs[: ran.prompt]) / ran.prompt == pytest.approx(out.prompt_cost)
        pieces = [piece.cost for piece in out.samples[0].pieces]
        assert ran.costs[ran.start :] == pytest.approx(pieces[1:])
    cost = run.cost(DECODE)
    assert cost is not None and 0 < cost < 1


def test_the_base_costs_1_and_skips_nothing(tiny_llm, ticks):
    llm = tiny_llm()
    dense = subject(llm, 1.0, ticks, "dense")
    assert dense.budget is None and dense.title == "adaptive, fp32"
    run = dense.run(PROMPTS, 3)
    assert {offset for ran in run.ran for offset in ran.offsets} == {float("inf")}
    assert run.cost(DECODE) == 1.0 and {c for ran in run.ran for c in ran.costs} == {1.0}


def test_a_prompt_alone_has_no_steps(tiny_llm, ticks):
    run = subject(tiny_llm(), 0.8, ticks).run([[5] * 40], 1)
    assert run.steps == 0 and run.ran[0].prompt == 40 == len(run.ran[0].costs)


def test_too_few_tokens_for_a_batch_is_said(tiny_llm, ticks):
    llm = tiny_llm(max_batch=1)  # the second text starts when the first is done
    with pytest.raises(ValueError, match="raise --new-tokens"):
        subject(llm, 0.8, ticks).run(PROMPTS, 2)
    assert llm.engine.scheduler.idle


@pytest.mark.parametrize("read", [1.0, "same"])
def test_the_work_of_a_run_is_that_of_its_route(tiny_llm, ticks, read):
    """The engine counts rows where it runs them; the route says which it must run."""
    from depthdial.evaluate.speed.routes import paths

    llm = tiny_llm()
    one = subject(llm, 0.8, ticks, read=read)
    before = llm.stats.rows_run
    run = one.run(PROMPTS, 40)
    tokens, offsets = [ran.tokens for ran in run.ran], [ran.offsets for ran in run.ran]
    ways, program = paths(llm.model, tokens, offsets, [ran.prompt for ran in run.ran]), converted_of(llm.model).program
    assert llm.stats.rows_run - before == sum(way.visits(program) for way in ways)
    rest = [way.ran for way in ways]
    assert [keep.shape[1] for keep in rest] == [len(ran.costs) for ran in run.ran]
    for keep, ran in zip(rest, run.ran, strict=True):
        assert bool(keep[:, : ran.prompt].all()) == (read == 1.0) and not keep[:, ran.prompt :].all()
        assert len(set(ran.offsets[ran.prompt :])) > 1, "the dial moves to hold the budget"


def test_a_row_of_prefill_says_how_its_prompt_is_read(tiny_llm, ticks):
    llm, prefill = tiny_llm(), Regime("prefill", 1, 40, 1)
    full, same, at = (subject(llm, 0.8, ticks, read=content, kinds=("prefill",)) for content in (1.0, "same", 0.9))
    assert [one.title for one in (full, same, at)] == [
        "adaptive, prompt read in full, fp32", "adaptive 0.8, prompt skips too, fp32",
        "adaptive, prompt read at 0.9, fp32",
    ]  # fmt: skip
    assert (full.budget, full.prompt_budget, same.budget) == (None, 1.0, 0.8)
    assert full.takes(prefill) and not full.takes(DECODE)
    costs = [one.run([list(range(3, 43))], 1).cost(prefill) or 0.0 for one in (full, at, same)]
    assert 1.0 == costs[0] > costs[1] > costs[2] > 0
