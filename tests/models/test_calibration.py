"""Measuring a model: nothing at full depth, a curve that follows the cost, and what Static asks of a base."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.core.method import Method
from depthdial.methods import Dense, FlexiDepth, SkipLayer, Static
from depthdial.models.calibration import BaseProbe, Heldout, between, measure_curve, measure_stops, turning_points
from depthdial.models.convert import convert
from depthdial.models.families import FAMILIES

IDS = torch.randint(3, 300, (2, 16), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": IDS, "position_ids": torch.arange(16).expand(2, 16)}
FIXED = [FlexiDepth(first=2, start=0.0, fixed_input=True), SkipLayer(fixed_input=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_costs_one_and_differs_by_nothing(
    tiny_model: Callable, adaptive: Callable, packed: Callable, family: str
):
    model: Any = adaptive(tiny_model(family))
    model.converted.set(offset=0.25)
    heldout = Heldout(model, [packed(2, 16), packed(3, 12, seed=1)])
    assert heldout.measure(math.inf) == (1.0, 0.0)
    cost, kl = heldout.measure(0.0)
    assert cost < 1.0 and kl > 0.01
    assert model.converted.settings.offset == 0.25, "the dial is put back"


def test_cost_and_kl_are_means_over_tokens_with_a_label(tiny_model: Callable, adaptive: Callable, packed: Callable):
    model, base = adaptive(tiny_model("llama")), tiny_model("llama")
    batches = [packed(2, 16), packed(3, 12, seed=1)]
    costs, kls = [], []
    model.converted.set(offset=-0.3)
    for batch in batches:
        ids, positions, real = batch["input_ids"], batch["position_ids"], batch["labels"] != -100
        with torch.no_grad():
            student = model(ids, position_ids=positions, use_cache=False).logits[real].log_softmax(-1)
            teacher = base(ids, position_ids=positions, use_cache=False).logits[real].log_softmax(-1)
        kls.append(F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1))
        costs.append(model.route.token_cost()[real])
    cost, kl = Heldout(model, batches).measure(-0.3)
    assert cost == pytest.approx(float(torch.cat(costs).mean()), rel=1e-5)
    assert kl == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)


def test_a_model_without_routes_is_measured_too(tiny_model: Callable, packed: Callable):
    assert Heldout(convert(tiny_model("llama"), Dense()), [packed()]).measure(0.0) == (1.0, 0.0)


# ---------------------------------------------------------------- the curve


@dataclass
class Gates:
    """Routers whose logits are spread around `-centre`; counts how often it is asked for its cost and KL."""

    centre: float
    width: float
    floor: float
    calls: int = 0

    def __call__(self, offset: float) -> tuple[float, float]:
        share = 1 / (1 + math.exp(min(700.0, -(offset - self.centre) / self.width)))
        self.calls += 1
        return self.floor + (1.002 - self.floor) * share, (1 - share) ** 2


@settings(max_examples=40)
@given(st.floats(-4, 4), st.floats(0.7, 4), st.floats(0.3, 0.9))
def test_a_curve_reaches_both_ends_and_follows_the_cost(centre: float, width: float, floor: float):
    measure = Gates(centre, width, floor)
    curve = measure_curve(measure)
    assert measure.calls <= 32
    assert curve.floor < floor + 0.01 and curve.costs[-1] > 0.99
    assert max(b - a for a, b in pairwise(curve.costs)) < 0.35 * (1.002 - floor)
    for budget in (floor + t * (1 - floor) for t in (0.1, 0.3, 0.5, 0.7, 0.9)):
        assert measure(curve.offset(budget))[0] == pytest.approx(budget, abs=0.05)


@pytest.mark.parametrize(("centre", "width"), [(6, 0.3), (-6, 0.3), (3, 0.2), (-3, 0.2)])
def test_a_flat_stretch_around_zero_is_not_the_end(centre: float, width: float):
    """Routers that agree: fresh ones, at a start of 2, keep everything at 0 and at -1, too."""
    measure = Gates(centre, width, 0.6)
    curve = measure_curve(measure)
    assert curve.floor < 0.61 and curve.costs[-1] > 0.99
    for budget in (0.7, 0.8, 0.9):
        assert measure(curve.offset(budget))[0] == pytest.approx(budget, abs=0.05)


def test_a_staircase_has_its_steps():
    """Static: one layer fewer for each whole step of the dial."""

    def measure(offset: float) -> tuple[float, float]:
        layers = min(6, max(0, math.floor(offset + 4.5)))
        return 0.7 + 0.05 * layers, 0.1 * (6 - layers)

    curve = measure_curve(measure)
    assert curve.floor == pytest.approx(0.7) and curve.costs[-1] == pytest.approx(1.0)
    assert {round(cost, 2) for cost in curve.costs} == {0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0}


def test_a_method_without_choices_has_a_flat_curve():
    curve = measure_curve(lambda _offset: (1.0, 0.0))
    assert curve.floor == 1.0 and set(curve.costs) == {1.0}


@pytest.mark.parametrize("method", FIXED)
def test_a_router_that_cannot_see_the_token_turns_once(tiny_model: Callable, adapted: Callable, method: Method):
    """All tokens run a layer or none does, so each layer is a step of the dial."""
    model: Any = adapted(tiny_model("llama"), method)
    turns = turning_points(model)
    assert len(turns) == len(model.converted.program.routed) // len(
        {u.step.unit for u in model.converted.routed.values()}
    )
    heldout = Heldout(model, [BATCH])
    curve = measure_stops(heldout.measure, between(turns))
    assert len(curve.offsets) == len(turns) + 1 and all(b > a + 0.01 for a, b in pairwise(curve.costs))
    for offset, cost in zip(curve.offsets, curve.costs, strict=True):
        heldout.run(0, offset)
        assert len(model.route.token_cost().unique()) == 1, "no token differs"
        assert curve.offset(min(1.0, cost + 0.005)) in (offset, math.inf)
        if cost + 0.005 < 1.0:
            assert heldout.measure(curve.offset(cost + 0.005))[0] <= cost + 0.005


def test_whole_layers_turn_between_whole_numbers(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), Static(order=(3, 1, 4), count=2))
    assert turning_points(model) == pytest.approx([-0.5, 0.5, 1.5], abs=1e-4)
    curve = measure_stops(lambda offset: (0.8 + 0.05 * offset, 0.0), between(turning_points(model)))
    assert curve.offsets == (-1.0, 0.0, 1.0, 2.0) and curve.step == 1.0
    converted = model.converted
    assert converted.method.stops(converted.program) == list(curve.offsets), "as the method says itself"
    assert turning_points(adapted(tiny_model("llama"), Dense())) == []


# ---------------------------------------------------------------- the probe


@pytest.fixture
def probe(tiny_model: Callable, packed: Callable) -> BaseProbe:
    return BaseProbe(tiny_model("llama"), [packed(2, 16), packed(1, 16, seed=1)])


def test_block_influence_is_one_minus_the_cosine(probe: BaseProbe, tiny_model: Callable, packed: Callable):
    """Over the first of its batches, as its divergence."""
    base, cosines = tiny_model("llama"), []
    for batch in (packed(2, 16),):
        with torch.no_grad():
            out = base.model(
                batch["input_ids"], position_ids=batch["position_ids"], output_hidden_states=True, use_cache=False
            )
        last = []
        base.model.layers[-1].register_forward_hook(lambda _m, _a, o, last=last: last.append(o))
        with torch.no_grad():
            base.model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        states = torch.stack([*out.hidden_states[:-1], last[-1]])  # Hugging Face gives the last one after the norm
        cosines.append(F.cosine_similarity(states[:-1], states[1:], dim=-1)[:, batch["labels"] != -100])
    expected = 1 - torch.cat(cosines, dim=1).mean(1)
    torch.testing.assert_close(torch.tensor(probe.block_influence()), expected, rtol=1e-4, atol=1e-5)


def test_divergence_is_that_of_the_base_without_the_layers(probe: BaseProbe, tiny_model: Callable, packed: Callable):
    assert probe.depth == 6
    assert probe.divergence([]) == 0.0
    one, two = probe.divergence([3]), probe.divergence([3, 1])
    assert one > 0 and two != one
    base, short = tiny_model("llama"), tiny_model("llama")
    del short.model.layers[3]
    short.config.num_hidden_layers = 5
    kls = []
    for batch in (packed(2, 16),):
        ids, positions, real = batch["input_ids"], batch["position_ids"], batch["labels"] != -100
        with torch.no_grad():
            student, teacher = (
                m(ids, position_ids=positions, use_cache=False).logits[real].log_softmax(-1) for m in (short, base)
            )
        kls.append(F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1))
    assert one == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)


@pytest.mark.parametrize("selection", ["greedy_kl", "block_influence"])
def test_static_calibrates_on_a_real_probe(probe: BaseProbe, selection: Any):
    chosen = Static(selection=selection, length=3).calibrate(probe)
    assert isinstance(chosen, Static) and len(set(chosen.order)) == 3
    if selection == "greedy_kl":
        assert chosen.order[0] == min(range(6), key=lambda layer: probe.divergence([layer]))
    assert FlexiDepth().calibrate(probe) == FlexiDepth()


@pytest.mark.parametrize("rows", [None, 100])
def test_readouts_are_the_head_on_the_stream(probe: BaseProbe, tiny_model: Callable, packed: Callable, rows: Any):
    base, layers = tiny_model("llama"), (0, 2, 5)
    looks, right = probe.readouts(layers, rows)
    tops, agree = [], []
    for batch in (packed(2, 16), packed(1, 16, seed=1)):
        with torch.no_grad():
            out = base(
                batch["input_ids"], position_ids=batch["position_ids"], output_hidden_states=True, use_cache=False
            )
            real = batch["labels"] != -100
            logits = torch.stack([base.lm_head(base.model.norm(out.hidden_states[i][real])) for i in layers])
        top = logits[..., :rows].softmax(-1).sort(-1, descending=True).values
        tops.append(torch.stack([top[..., 0], top[..., 0] - top[..., 1]], -1))
        agree.append(logits.argmax(-1) == out.logits[real].argmax(-1))
    torch.testing.assert_close(looks, torch.cat(tops, 1))
    assert torch.equal(right, torch.cat(agree, 1)) and 0 < right.float().mean() < 1


def test_a_probe_leaves_the_base_as_it_was(probe: BaseProbe, tiny_model: Callable):
    probe.readouts([1], None)
    probe.divergence([2])
    probe.block_influence()
    base, model = tiny_model("llama"), probe._readout.model
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, base(IDS).logits)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in probe._layers)
