"""Rows that vote: the threshold meets the budget, and a pass equals the reference, natively and in torch."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.engine.ballot import Ballot
from depthdial.engine.batch import Batch
from depthdial.engine.native import NativeRunner
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.scheduler import Slice

PROMPTS = [[5, 9, 13, 2], [7, 3], [11, 4, 8, 8, 6], [21, 22], [30, 4, 17]]


@given(target=st.floats(0.7, 0.95), rows=st.integers(2, 64), seed=st.integers(0, 99))
def test_the_threshold_settles_where_passes_cost_what_was_asked(target: float, rows: int, seed: int):
    draw, ballot, costs = random.Random(seed), Ballot(), []
    for _ in range(900):
        threshold = ballot.threshold([target] * rows)
        assert 0 < threshold < 1
        gates = [0.5 + draw.gauss(0, 0.2) for _ in range(24)]
        cost = 0.6 + 0.4 * sum(gate > threshold for gate in gates) / len(gates)
        ballot.learn([target] * rows, [cost] * rows)
        costs.append(cost)
    assert sum(costs[300:]) / 600 == pytest.approx(target, abs=0.01)


def test_each_budget_and_size_has_its_own_threshold():
    ballot = Ballot(cut=0.0)
    for _ in range(50):
        ballot.learn([0.8] * 4, [1.0] * 4)
    assert ballot.threshold([0.8] * 4) > 0.9
    assert ballot.threshold([0.8] * 16) == ballot.threshold([0.9] * 4) == 0.5


@pytest.mark.parametrize("fields", [{}, {"weights": "soft"}])
@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6])
def test_a_voted_pass_is_the_references(made, asked, fields: dict, threshold: float):
    """Native kernels against torch runner against `Routed`: the same layers for all rows, the same logits."""
    given: dict[str, tuple] = {}
    for native in (True, False):
        llm = made(fields=fields, grain="step", budget=None, prefix_cache=False)
        engine = llm.engine
        assert isinstance(engine.runner, NativeRunner)
        runner = engine.runner if native else engine.runner.plain
        requests = [asked(llm, ids, offset) for ids, offset in zip(PROMPTS, (0.3, 0, -0.2, math.inf, 0), strict=True)]
        for request in requests:
            engine.submit(request, llm.tokenizer)
        engine.step()
        rows = [request.rows[0] for request in requests]
        slices = [Slice(row, row.computed, 1) for row in rows]
        for row in rows:
            assert row.slot is not None
            assert engine.batch.cache.grow(row.slot, row.computed, row.computed + 1)
        batch: Batch = engine.batch
        batch.fill(slices)
        batch.greedy, batch.vote = False, threshold
        passed = runner.run(batch)
        assert passed.keep is not None
        assert passed.logits is not None
        keep = passed.keep.astype(bool)
        voters = keep[:, [0, 1, 2, 4]]
        assert (voters == voters[:, :1]).all(), "a layer runs for all voters or none"
        assert keep[:, 3].all(), "the untouched base neither votes nor follows"
        given["native" if native else "torch"] = (keep.copy(), passed.logits.float().clone())
    assert (given["native"][0] == given["torch"][0]).all()
    torch.testing.assert_close(given["native"][1], given["torch"][1], rtol=2e-4, atol=2e-4)
    assert not given["torch"][0][:, 0].all(), "something was skipped"


def test_texts_that_vote_read_a_layer_for_all_or_for_none(made, asked, finish):
    llm = made(grain="step", budget=None, prefix_cache=False)
    requests = [asked(llm, ids, ignore_eos=True) for ids in PROMPTS]
    for request in requests:
        request.target = 0.8
        llm.engine.submit(request, llm.tokenizer)
    outs = finish(llm, requests)
    assert all(len(out.token_ids) == 12 for out in outs)
    depths = [out.depths[1:] for out in outs]  # the first token's pass is the prompt's
    assert all(column == depths[0] for column in depths)
    apart = made(prefix_cache=False)
    others = [asked(apart, ids, ignore_eos=True) for ids in PROMPTS]
    for request in others:
        apart.engine.submit(request, apart.tokenizer)
    finish(apart, others)
    assert llm.stats.layers_run < apart.stats.layers_run


def test_voting_is_refused_where_it_means_nothing(made):
    with pytest.raises(ValueError, match="routers' scores"):
        made("random", grain="step")
    with pytest.raises(ValueError, match="grain must be"):
        made(grain="batch")
    llm = made(grain="step", budget=None)
    with pytest.raises(ValueError, match="budget"):
        llm.generate([[1, 2]], SamplingParams(max_tokens=2))
