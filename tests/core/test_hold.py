"""A budget held by feedback: on texts that cost more or less than the curve says, in any pieces, without wind-up."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.core.hold import BLOCK, GRID, REACH, Hold

HOLD = Hold(0.9, 0.25, 0.08)
costs = st.lists(st.integers(20, 50).map(lambda layers: 0.02 * layers + 0.0043), max_size=100)


def written(hold: Hold, cost: Callable[[float, int], float], tokens: int) -> tuple[list[float], list[float]]:
    """The cost and the offset of each token of a text whose next token costs what `cost` says, of its offset and
    place."""
    state, spent, offsets = hold.begin(), [], []
    for place in range(tokens):
        offsets.append(hold.offset(state))
        spent.append(cost(offsets[-1], place))
        state = hold.after(state, spent[-1:])
    return spent, offsets


def router(easier: float, slope: float = 0.08, noise: float = 0.0, seed: int = 0) -> Callable[[float, int], float]:
    """Tokens that cost `easier` less than the curve says, with a dial of another slope; 0.42 to 1 are all it can do."""
    draw = random.Random(seed)

    def cost(offset: float, _place: int) -> float:
        mean = HOLD.budget - easier + slope * (offset - HOLD.start)
        return min(1.004, max(0.42, mean + draw.gauss(0, noise)))

    return cost


@pytest.mark.parametrize("easier", [-0.08, -0.03, 0.0, 0.05, 0.08])
@pytest.mark.parametrize("slope", [0.06, 0.08, 0.12])
@pytest.mark.parametrize("tokens", [64, 100, 160, 400])
def test_texts_unlike_the_curve_cost_the_budget_all_the_same(easier: float, slope: float, tokens: int):
    free = sum(router(easier, slope)(HOLD.start, i) for i in range(tokens)) / tokens
    assert abs(free - HOLD.budget) == pytest.approx(abs(easier)), "what it costs unheld"
    spent, _ = written(HOLD, router(easier, slope, noise=0.08), tokens)
    assert sum(spent) / tokens == pytest.approx(HOLD.budget, abs=0.02)


def test_a_text_that_turns_cheap_is_brought_back():
    plain, cheap = router(0.0, noise=0.05), router(0.25, noise=0.05)
    spent, offsets = written(HOLD, lambda offset, place: (plain if place < 200 else cheap)(offset, place), 400)
    assert sum(spent) / 400 == pytest.approx(0.9, abs=0.01)
    assert offsets[-1] > offsets[150] + 1


def test_the_dial_stands_still_within_a_block_and_on_the_grid():
    _, offsets = written(HOLD, router(0.1, noise=0.1), 100)
    blocks = [offsets[i : i + BLOCK] for i in range(0, 100, BLOCK)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert len({block[0] for block in blocks}) > 3
    assert all(offset % GRID == 0 for offset in offsets)
    assert offsets[0] == HOLD.start


@given(costs, st.lists(st.integers(0, 100), max_size=5))
def test_pieces_make_no_difference(costs: list[float], cuts: list[int]):
    whole = HOLD.after(HOLD.begin(), costs)
    edges = [0, *sorted(min(cut, len(costs)) for cut in cuts), len(costs)]
    state = HOLD.begin()
    for start, stop in itertools.pairwise(edges):
        state = HOLD.after(state, costs[start:stop])
    assert state == whole
    assert state.count == len(costs) % BLOCK


@given(costs, st.randoms())
def test_the_last_bits_of_costs_make_no_difference(costs: list[float], draw: random.Random):
    off = [cost * (1 + draw.choice((-1, 0, 1)) * 2.0**-52) for cost in costs]
    assert HOLD.after(HOLD.begin(), off) == HOLD.after(HOLD.begin(), costs)


@pytest.mark.parametrize("stuck", [0.42, 1.0])
def test_what_cannot_be_held_does_not_wind_up(stuck: float):
    hold = Hold(0.7, 0.0, 0.1)
    _, offsets = written(hold, lambda offset, place: stuck, 5000)
    assert max(map(abs, offsets)) <= REACH / 0.1
    loose = router(0.0, 0.1)

    def later(offset: float, place: int) -> float:
        return stuck if place < 1000 else loose(offset, place) - 0.2

    spent, _ = written(hold, later, 1200)
    assert all(abs(cost - 0.7) < 0.17 for cost in spent[1000 + 4 * BLOCK :]), "paid back in small parts"


def test_a_dial_of_whole_layers_alternates_between_two_steps():
    def cost(offset: float, _place: int) -> float:  # 0.03 a layer, of which 0.9 is no multiple
        return 0.89 + 0.03 * math.floor(offset + 0.5)

    spent, _ = written(Hold(0.9, 0.4, 0.03), cost, 200)
    assert {round(one, 2) for one in spent} == {0.89, 0.92}
    assert sum(spent) / 200 == pytest.approx(0.9, abs=0.005)


def test_a_flat_curve_moves_by_finite_steps():
    _, offsets = written(Hold(0.9, 1.0, 0.0), lambda offset, place: 0.8, 64)
    assert all(map(math.isfinite, offsets)) and offsets[-1] > offsets[0]


@pytest.mark.parametrize("numbers", [(0.9, math.inf, 0.1), (0.9, math.nan, 0.1), (0.9, 0.0, math.nan)])
def test_only_finite_dials_are_held(numbers: tuple[float, float, float]):
    with pytest.raises(ValueError, match="finite offset"):
        Hold(*numbers)
