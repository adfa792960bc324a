"""The dial that moves by itself: towards a speed, with the load, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.engine.auto import SEEN, AutoBudget
from depthdial.engine.llm import LLM
from depthdial.engine.sampling import SamplingParams


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
    moving = [llm.submit([5, 6, 7 + i], SamplingParams(max_tokens=8, ignore_eos=True)) for i in range(6)]
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
