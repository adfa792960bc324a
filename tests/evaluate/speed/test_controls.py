"""Random skipping made on the spot: the layers of the plug-in, at the cost that is asked for."""

from __future__ import annotations

import pytest

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.evaluate.speed.controls import budget_for, random_like
from depthdial.methods import Balcony, Readout
from depthdial.models.converted import converted_of


@pytest.fixture(scope="module")
def made(tiny_llm, tiny_folder):
    llm = tiny_llm()
    model, tokenizer = random_like(converted_of(llm.model).program, str(tiny_folder), "float32", "cpu", seed=3)
    return llm, LLM.of(model, tokenizer, prefix_cache=False)


def test_it_routes_the_same_layers(made):
    llm, random = made
    ours, theirs = (converted_of(each.model).program for each in (random, llm))
    assert {ours.steps[s].block for s in ours.routed} == {theirs.steps[s].block for s in theirs.routed} == {2, 3, 4, 5}


@pytest.mark.parametrize("method", [Balcony(exits=(2, 4)), Readout(layers=(2, 5), rule="calm")], ids=str)
def test_beside_exits_it_draws_from_all_layers_above_the_first(tiny_folder, method):
    model, _ = random_like(method.program(6), str(tiny_folder), "float32", "cpu", seed=3)
    program = converted_of(model).program
    assert {program.steps[s].block for s in program.routed} == {2, 3, 4, 5}


@pytest.mark.parametrize("cost", [0.75, 0.85, 0.95])
def test_its_cost_is_the_one_asked_for(made, cost):
    _, random = made
    budget = budget_for(random, cost)
    assert budget == cost
    outputs = random.generate([[i, 7] for i in range(10, 14)], SamplingParams(120, ignore_eos=True, budget=budget))
    assert sum(out.cost for out in outputs) / 4 == pytest.approx(cost, abs=0.03)


def test_a_cost_out_of_reach_is_the_nearest(made):
    _, random = made
    assert budget_for(random, 0.01) == random.plugin.curves["generated"].floor
    assert budget_for(random, 1.2) < 1.0


def test_a_plugin_without_a_curve_is_refused(adaptive, tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="no budget curve"):
        budget_for(LLM.of(adaptive(tiny_model()), tiny_tokenizer), 0.8)
