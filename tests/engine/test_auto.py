"""The dial that moves by itself: towards a speed, with the load, within bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.poison import poison

from depthdial.core.dial import Curve
from depthdial.engine.auto import SEEN, AutoBudget
from depthdial.engine.llm import LLM
from depthdial.engine.native import NativeRunner
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.step import Dial
from depthdial.models.checkpoint import Plugin
from depthdial.models.fingerprint import fingerprint


class Machine:
    """A clock that a pass of some cost moves on: `fixed` seconds and `per_cost` more."""

    def __init__(self, fixed: float, per_cost: float):
        self.now, self.fixed, self.per_cost = 0.0, fixed, per_cost

    def __call__(self) -> float:
        return self.now

    def run(self, cost: float) -> None:
        self.now += self.fixed + self.per_cost * cost


@given(fixed=st.floats(0, 0.004), per_cost=st.floats(0.005, 0.02), wanted=st.floats(0.76, 0.99))
def test_the_target_is_met_where_the_bounds_allow_it(fixed: float, per_cost: float, wanted: float):
    machine = Machine(fixed, per_cost)
    target = 1 / (fixed + per_cost * wanted)
    auto = AutoBudget(0.7, 1.0, target, clock=machine)
    for _ in range(300):
        machine.run(auto.budget)
        auto.stepped(1, auto.budget, 0, 4)
    assert auto.budget == pytest.approx(wanted, abs=0.021)


@given(target=st.sampled_from([1e-3, 1e6]))
def test_bounds_hold(target: float):
    machine = Machine(0, 0.01)
    auto = AutoBudget(0.8, 0.95, target, clock=machine)
    for _ in range(100):
        machine.run(auto.budget)
        auto.stepped(1, auto.budget, 0, 4)
    assert auto.budget == (0.95 if target < 1 else 0.8)


def test_it_follows_the_load_down_and_up():
    auto = AutoBudget(0.75, 1.0)
    assert auto.budget == 1.0
    for _ in range(60):
        auto.stepped(4, 1.0, 2, 4)
    assert auto.budget == pytest.approx(0.875, abs=0.011)
    for _ in range(60):
        auto.stepped(4, 1.0, 40, 4)
    assert auto.budget == 0.75
    for _ in range(60):
        auto.stepped(4, 1.0, 0, 4)
    assert auto.budget == 1.0


def test_pauses_are_nobodys():
    machine = Machine(0, 0.01)
    auto = AutoBudget(0.7, 1.0, 100.0, clock=machine)
    for _ in range(3 * SEEN):
        machine.run(auto.budget)
        auto.stepped(1, auto.budget, 0, 4)
        auto.rest()
        machine.now += 60
    assert auto.budget == 1.0


@pytest.mark.parametrize(
    ("bounds", "target", "said"), [((0.9, 0.8), None, "bounds"), ((0.7, 1.1), None, "bounds"), ((0.7, 1), 0, "above 0")]
)
def test_bad_settings_are_told(bounds: tuple[float, float], target: float | None, said: str):
    with pytest.raises(ValueError, match=said):
        AutoBudget(*bounds, target)


@pytest.fixture(scope="module")
def plugin_llm(tiny_folder: Path, tiny_plugin: Path) -> Callable[..., LLM]:
    return lambda **kwargs: LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu", **kwargs)


def test_texts_that_wait_lower_the_budget_of_all_that_leave_it_to_the_engine(plugin_llm):
    llm: LLM = plugin_llm(budget="auto", budget_bounds=(0.8, 1.0), max_batch=2)
    assert llm.budget == 1.0
    moving = [llm.submit([5, 6, 7 + i], SamplingParams(max_tokens=8, ignore_eos=True)) for i in range(8)]
    fixed = llm.submit([1, 2], SamplingParams(max_tokens=8, ignore_eos=True, budget=1.0))
    while not all(request.done for request in moving):
        llm.engine.step()
    assert min(request.target for request in moving if request.target is not None) < 0.9
    list(llm.follow(fixed))
    assert fixed.rows[0].depths == [llm.layers] * 8, "a budget of its own stands"
    with pytest.raises(ValueError, match="budget='auto'"):
        plugin_llm(target_tokens_per_second=50.0)
    with pytest.raises(ValueError, match="'auto'"):
        plugin_llm(budget="automatic")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("method", ["static", "flexidepth"])
def test_a_dial_that_moves_never_lets_a_text_read_what_nobody_wrote(made, method: str, native: bool):
    """Static layers write nothing for what they drop: once a text has begun, none may come back for it."""
    llm: LLM = made(method, cache_tokens=64 * 8, max_batch=2)
    if not native and isinstance(llm.engine.runner, NativeRunner):
        llm.engine.runner = llm.engine.runner.plain
    poison(llm.engine.scheduler.cache)
    curve = Curve((-1.0, 0.0, 1.0, 2.0), (0.7, 0.75, 0.85, 0.95), (0.5, 0.4, 0.2, 0.1), step=float(method == "static"))
    model: Any = llm.model
    routed, curves = model.converted.method, {"generated": curve}
    model.converted.plugin = Plugin("tiny", routed, fingerprint(model), curves, recommended=0.85)
    llm.budgets.auto = auto = AutoBudget(0.75, 0.95)
    budgets = itertools.cycle([0.75, 0.95, 0.85])
    llm.engine.dial = Dial(auto, llm.offset_of)
    vars(auto).update(stepped=lambda *_: setattr(auto, "_exact", next(budgets)))  # a load that jumps at every step
    shared = torch.randint(3, 300, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    requests = [llm.submit([*shared, 5 + i], SamplingParams(max_tokens=10, ignore_eos=True)) for i in range(8)]
    offsets: dict[int, set[float]] = {i: set() for i in range(8)}
    while not all(request.done for request in requests):
        llm.engine.step()
        for i, request in enumerate(requests):
            if any(row.slot is not None for row in request.rows):
                offsets[i].add(request.dials.written)
    for i, request in enumerate(requests):
        (row,) = request.rows
        assert row.error is None and len(row.token_ids) == 10
        if method == "static":
            assert len(offsets[i]) == 1
            (offset,) = offsets[i]
            model.converted.set(offset=offset)
            with torch.no_grad():
                logits = model(torch.tensor([row.tokens]), use_cache=False).logits[0]
            assert row.token_ids == logits[70:-1].argmax(-1).tolist()
            assert row.ran_depths == model.route.layers_used[0].tolist()[:-1]
    if method == "static":
        assert len(set.union(*offsets.values())) > 1, "texts that began at different times have different budgets"
        assert {request.cached_tokens for request in requests} == {0, 64}, "only those of one budget share pages"
    else:
        assert max(map(len, offsets.values())) > 1, "what writes K and V for all tokens moves in mid-text"
