"""Turning the dial of a loaded model: budgets become offsets, and what cannot be promised is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from depthdial.core.dial import Curve
from depthdial.methods import Dense, FlexiDepth
from depthdial.models.checkpoint import attach
from depthdial.models.convert import convert
from depthdial.models.dial import offset_for, set_budget


@pytest.fixture
def model(tiny_model: Callable, tiny_plugin: Path) -> Any:
    """With a curve for text from 0.7 at -2 over 0.8 at 0 to 0.95 at 2, 0.8 recommended, and another for generation."""
    model: Any = attach(tiny_model("llama"), tiny_plugin)
    curves = {**model.plugin.curves, "generated": Curve((-2.0, 2.0), (0.6, 0.9), (0.5, 0.1))}
    model.plugin = dataclasses.replace(model.plugin, curves=curves)
    return model


def test_each_kind_of_token_has_its_curve(model: Any):
    assert offset_for(model, 0.75) == offset_for(model, 0.75, "text") == pytest.approx(-1.0)
    assert offset_for(model, 0.75, "generated") == pytest.approx(0.0)
    assert offset_for(model, 0.65, "generated") < -1
    with pytest.raises(ValueError, match=r"0\.700 to 1\.0"):
        offset_for(model, 0.65)


def test_a_kind_without_a_curve_takes_the_one_there_is(model: Any):
    model.plugin = dataclasses.replace(model.plugin, curves={"text": model.plugin.curves["text"]})
    assert offset_for(model, 0.75, "generated") == pytest.approx(-1.0)


def test_none_is_the_recommended_budget_or_the_trained_form(model: Any, tiny_model: Callable):
    assert offset_for(model, None) == pytest.approx(0.0)
    assert offset_for(model, None, "generated") == pytest.approx(offset_for(model, 0.8, "generated"))
    model.plugin = dataclasses.replace(model.plugin, recommended=None)
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
    assert model.route.offset == pytest.approx(-1.0)


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
