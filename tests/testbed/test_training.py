"""Ladders and methods on tiny worlds: what grows, what is trained, what is held."""

import copy

import pytest
import torch

from depthdial.methods import SkipLayer, method_named
from depthdial.models.convert import base_weights, convert
from depthdial.models.converted import converted_of
from depthdial.models.scratch import Spec
from depthdial.testbed.fresh import deeper, fresh_dense, tokenizer_of
from depthdial.testbed.ladder import ladder
from depthdial.testbed.subjects import NAMES, answered, made, subjects
from depthdial.testbed.tasks import TASKS, World
from depthdial.testbed.training import Recipe, fit

WORLD = World("hop", hops=2, entities=7, questions=6, filler=4)
RECIPE = Recipe("4x2@16", rows=4, patience=2, settle=2, steps=3)


@pytest.fixture(scope="module")
def base():
    return fresh_dense(RECIPE.spec, WORLD, 0, 4).eval()


def test_a_ladder_has_each_depth_once_and_is_the_same_again():
    def climbed():
        return {layers: copy.deepcopy(model.state_dict()) for layers, model in ladder(WORLD, RECIPE, 1)}

    first, again = climbed(), climbed()
    assert list(first) == [1, 2, 3, 4]
    for layers, state in first.items():
        assert all(torch.equal(weight, again[layers][name]) for name, weight in state.items())
        assert sum(name.endswith("q_proj.weight") for name in state) == layers


def test_what_grows_keeps_its_weights_and_copies_its_last_layer(base):
    for method in (None, SkipLayer()):
        model = copy.deepcopy(base)
        if method is not None:
            convert(model, method, frozen=False)
        grown = deeper(model, method).state_dict()
        for name, weight in model.state_dict().items():
            assert torch.equal(grown[name], weight)
            if ".layers.3." in name:
                assert torch.equal(grown[name.replace(".layers.3.", ".layers.4.")], weight)
        assert any(".layers.4.parts.router" in name for name in grown) == (method is not None)


@torch.no_grad()
def test_a_fresh_head_looks_for_the_pair_that_an_entity_leads_by():
    """Under the role of what leads, keys are queries: the dot product of an entity and its pair is the highest."""
    first, model = WORLD.words.index, fresh_dense(Spec.parse("1x2@128"), WORLD, 0, 1)
    words, attn = model.get_input_embeddings().weight, model.model.layers[0].self_attn
    for a in range(WORLD.entities):
        names = [f"e{i}>e{(i + 1) % 7}" for i in range(7)]
        keys = torch.stack([words[first(name)] for name in names]) @ attn.k_proj.weight.T
        scores = keys @ (attn.q_proj.weight @ words[first(f"e{a}")])
        assert int(scores.argmax()) == a


@pytest.mark.parametrize("task", TASKS)
def test_text_and_ids_are_the_same_to_the_tokenizer(task):
    world = World(task, hops=2, entities=7)
    ids = world.batch(3, 0).ids
    assert tokenizer_of(world)([world.text(row) for row in ids])["input_ids"] == ids.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_subject_is_trained_and_measured(name, base):
    """Tiny and hardly trained: that the weights that should learn do, that costs are true, and that something is
    skipped where a method skips."""
    subject, before = subjects(4)[name], copy.deepcopy(base.state_dict())
    model = made(subject, base, WORLD, RECIPE, 0, lambda _: None)
    answers, cost = answered(model, WORLD, RECIPE, 0, 8)
    assert all(torch.equal(weight, before[key]) for key, weight in base.state_dict().items()), "the base is not touched"
    learned = [
        key for key, weight in base_weights(model).items() if key in before and not torch.equal(weight, before[key])
    ]
    if subject.start == "frozen":
        assert not learned
    else:
        assert len(learned) > 5
    assert cost is not None and len(answers.k) == len(answers.depth) > 50
    if converted_of(model).program.skips and subject.method != "recursive" and "fixed" not in name:
        assert answers.depth.min() < 4 and cost < 1.05
    if subject.dial is not None:
        assert cost == pytest.approx(subject.dial, abs=0.25), "stops of four layers are far apart"


def test_a_held_budget_is_near_after_training(base):
    model = copy.deepcopy(base)
    convert(model, method_named("skiplayer", {"estimator": "sampled", "router_ratio": 4}), frozen=False)
    fit(model, WORLD, RECIPE, 0, 60, budget=0.75)
    answers, cost = answered(model, WORLD, RECIPE, 0, 40)
    assert cost == pytest.approx(0.75, abs=0.06)
    assert len(set(answers.depth)) > 1
