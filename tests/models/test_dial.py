"""Turning the dial of a loaded model: budgets become offsets, and what cannot be promised is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from depthdial.core.dial import Curve
from depthdial.core.hold import GRID
from depthdial.methods import METHODS, Dense, FlexiDepth, Static, method_named
from depthdial.models.checkpoint import Plugin, attach
from depthdial.models.convert import convert
from depthdial.models.dial import dials_for, offset_for, prompt_budget_for, set_budget
from depthdial.models.fingerprint import fingerprint


@pytest.fixture
def model(tiny_model: Callable, tiny_plugin: Path) -> Any:
    """With a curve for text from 0.7 at -2 over 0.8 at 0 to 0.95 at 2, 0.8 recommended, and another for generation."""
    model: Any = attach(tiny_model("llama"), tiny_plugin)
    curves = {**model.converted.plugin.curves, "generated": Curve((-2.0, 2.0), (0.6, 0.9), (0.5, 0.1))}
    model.converted.plugin = dataclasses.replace(model.converted.plugin, curves=curves)
    return model


def test_each_kind_of_token_has_its_curve(model: Any):
    assert offset_for(model, 0.75) == offset_for(model, 0.75, "text") == pytest.approx(-1.0)
    assert offset_for(model, 0.75, "generated") == pytest.approx(0.0)
    assert offset_for(model, 0.65, "generated") < -1
    with pytest.raises(ValueError, match=r"0\.700 to 1\.0"):
        offset_for(model, 0.65)


def test_a_kind_without_a_curve_takes_the_one_there_is(model: Any):
    model.converted.plugin = dataclasses.replace(
        model.converted.plugin, curves={"text": model.converted.plugin.curves["text"]}
    )
    assert offset_for(model, 0.75, "generated") == pytest.approx(-1.0)


def test_none_is_the_recommended_budget_or_the_trained_form(model: Any, tiny_model: Callable):
    assert offset_for(model, None) == pytest.approx(0.0)
    assert offset_for(model, None, "generated") == pytest.approx(offset_for(model, 0.8, "generated"))
    model.converted.plugin = dataclasses.replace(model.converted.plugin, recommended=None)
    assert offset_for(model, None) == 0.0
    assert offset_for(convert(tiny_model("llama"), FlexiDepth()), None) == 0.0


def test_one_needs_no_curve(tiny_model: Callable):
    assert offset_for(convert(tiny_model("llama"), Dense()), 1.0) == math.inf


@pytest.mark.parametrize("budget", [0.9, 0.0, 1.5])
def test_without_a_curve_other_budgets_are_refused(tiny_model: Callable, budget: float):
    for method in (Dense(), FlexiDepth()):
        with pytest.raises(ValueError, match="needs a plug-in") as caught:
            offset_for(convert(tiny_model("llama"), method), budget)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [0.69, 1.01, -1.0, math.nan])
def test_a_refused_budget_leaves_the_dial_alone(model: Any, budget: float):
    set_budget(model, 0.75)
    with pytest.raises(ValueError, match="is outside"):
        set_budget(model, budget)
    assert model.converted.settings.offset == pytest.approx(-1.0)


def test_set_budget_turns_the_dial(model: Any):
    ids = torch.arange(3, 60)[None]
    costs = []
    for budget in (0.7, 0.8, 0.95, 1.0):
        set_budget(model, budget)
        with torch.no_grad():
            model(ids)
        costs.append(model.route.cost())
    assert costs[:3] == sorted(costs[:3]) and costs[0] < costs[2]
    assert costs[3] == 1.0, "below it, routers are paid for even where all layers run"


def test_a_prompt_has_a_dial_of_its_own(model: Any):
    dials = dials_for(model, 0.75)
    assert dials.read == math.inf and dials.hold is not None
    assert dials.hold.start == offset_for(model, 0.75, "generated") == pytest.approx(0.0)
    assert dials.written == round(dials.hold.start / GRID) * GRID
    assert dials.hold.slope == pytest.approx(0.3 / 4), "of the curve of generated tokens"
    assert dials_for(model, 0.75, 0.85).read == offset_for(model, 0.85, "text") != offset_for(model, 0.85, "generated")
    same = dials_for(model, 0.75, "same")
    assert same == (dials.written, None, dials.hold) and same.reading == dials.written
    assert dials_for(model, None) == dials_for(model, 0.8)
    assert dials_for(model, 1.0) == (math.inf, math.inf, None)


@pytest.mark.parametrize("prompt", [0, -0.1, 1.1, math.nan, "full", True])
def test_what_no_prompt_can_cost_is_refused(model: Any, prompt: Any):
    set_budget(model, 0.75)
    for ask in (dials_for, lambda model, _, prompt: set_budget(model, 0.8, prompt=prompt)):
        with pytest.raises(ValueError, match="prompt_budget must be above 0") as caught:
            ask(model, 0.75, prompt)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is outside"):
        set_budget(model, 0.8, prompt=0.3)
    assert model.converted.turned.budget == 0.75, "the dials are left alone"


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].frozen])
def test_a_model_with_its_own_routers_has_no_base_to_read_with(name: str, tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), method_named(name, dict(METHODS[name].example)))
    if not model.converted.program.skips:  # then there is nothing to be read otherwise
        assert prompt_budget_for(model) == 1.0
        return
    assert prompt_budget_for(model) == prompt_budget_for(model, "same") == "same"
    set_budget(model, None)
    assert model.converted.settings.read_offset is None
    for prompt in (1.0, 0.8):
        with pytest.raises(ValueError, match=r"own routers.*leave prompt_budget out") as caught:
            set_budget(model, None, prompt=prompt)
        assert "\n" not in str(caught.value)


def test_whole_layers_are_not_held_where_they_leave_no_keys(tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), Static(order=(3, 1, 4), count=2, adapter_ratio=0))
    curve = Curve((-1.0, 0.0, 1.0, 2.0), (0.7, 0.8, 0.9, 1.0), (0.3, 0.2, 0.1, 0.0), step=1.0)
    model.converted.plugin = Plugin("static", model.converted.method, fingerprint(model), {"text": curve})
    assert dials_for(model, 0.86) == (0.0, math.inf, None), "the step below"
    assert dials_for(model, 0.8, 0.9) == (0.0, 1.0, None)
    with pytest.raises(ValueError, match=r"a prompt read at 0\.7 leaves no K and V"):
        dials_for(model, 0.9, 0.7)


def test_a_forward_pass_scores_and_may_read(model: Any):
    """Which is what one pass over the prompt and one after it do."""
    ids = torch.arange(3, 43).view(2, 20)
    set_budget(model, 0.75)
    with torch.no_grad():
        scored = model(ids).logits
        model.converted.set(read=torch.arange(20).expand(2, 20) < torch.tensor([[8], [0]]))
        both, costs = model(ids).logits, model.route.token_cost()
        model.converted.set(read=None)
        cache = DynamicCache(config=model.config)
        with model.converted.using(offset=math.inf):
            model(ids[:1, :8], past_key_values=cache)
        rest = model(ids[:1, 8:], past_key_values=cache).logits
    assert costs[0, :8].eq(1.0).all() and costs[0, 8:].lt(1.0).any() and costs[1].lt(1.0).any()
    torch.testing.assert_close(both[:1, 8:], rest)
    torch.testing.assert_close(both[1], scored[1])
    assert not torch.allclose(both[0, 8:], scored[0, 8:])
