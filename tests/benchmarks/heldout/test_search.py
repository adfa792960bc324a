"""The dial is found for any curve of cost, in few measurements; where costs jump, rows take turns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.evaluate.equal_cost import KnobMix
from heldout.search import CostSearch


def smooth(offset: float) -> float:
    return 0.65 + 0.36 / (1 + math.exp(-1.7 * (offset - 0.8)))


def stairs(offset: float) -> float:
    return 1 - 0.025 * min(14, max(0, 4 - math.floor(offset)))


@given(st.floats(0.66, 0.99))
def test_a_smooth_dial_is_met_within_the_tolerance(cost):
    knob = CostSearch(smooth)(cost, tolerance=0.002)
    assert isinstance(knob, float)
    assert abs(smooth(knob) - cost) <= 0.002


def test_measurements_are_few_and_remembered():
    asked: list[float] = []
    search = CostSearch(lambda offset: asked.append(offset) or smooth(offset))
    for cost in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7):
        search(cost)
    assert len(asked) == len(set(asked)) < 36
    search(0.9)
    assert len(asked) == len(search.known)


@given(st.floats(0.66, 0.999))
def test_between_two_steps_the_rows_take_turns(cost):
    knob = CostSearch(stairs, resolution=1.0)(cost, tolerance=1e-6)
    rows = torch.arange(4000)
    offsets = knob.offsets(rows) if isinstance(knob, KnobMix) else torch.full((4000,), knob)
    assert set(offsets.tolist()) <= {float(round(o)) for o in offsets.tolist()}  # whole numbers: the steps themselves
    assert abs(sum(map(stairs, offsets.tolist())) / 4000 - cost) < 1e-3


@pytest.mark.parametrize(("cost", "end"), [(0.5, r"at least 0\.650"), (1.2, r"at most 1\.010")])
def test_out_of_reach(cost, end):
    with pytest.raises(ValueError, match=end):
        CostSearch(smooth)(cost)


def test_a_flat_stretch_is_not_the_end():
    knob = CostSearch(lambda offset: smooth(offset - 9))(0.8)
    assert isinstance(knob, float) and abs(smooth(knob - 9) - 0.8) <= 0.001


def test_the_floor_itself_is_within_reach():
    knob = CostSearch(stairs, resolution=1.0)(0.65)
    assert isinstance(knob, float) and stairs(knob) == pytest.approx(0.65)
