"""The dynamic program beside all ways one by one, shares among units, and scores that say nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.evaluate.headroom.oracle import cheapest, dealt, pooled, spread


def scores(units: int, layers: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    single = random.exponential(size=(units, layers))
    return single, single[:, :-1] + single[:, 1:] + random.normal(scale=0.6, size=(units, layers - 1))


def total(single: np.ndarray, pair: np.ndarray, chosen: tuple[int, ...]) -> float:
    """What a choice of layers costs one unit, by definition."""
    joint = [max(pair[k], single[k], single[k + 1]) - single[k] - single[k + 1] for k in chosen if k + 1 in chosen]
    return float(sum(single[k] for k in chosen) + sum(joint))


@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_no_way_is_cheaper_than_the_one_that_is_found(layers: int, seed: int):
    single, pair = scores(3, layers, seed)
    ways = cheapest(single, pair, layers)
    for unit, count in itertools.product(range(3), range(layers + 1)):
        every = {
            chosen: total(single[unit], pair[unit], chosen) for chosen in itertools.combinations(range(layers), count)
        }
        assert ways.value[unit, count] == pytest.approx(min(every.values()))
        assert every[tuple(np.flatnonzero(ways.dropped[unit, count]).tolist())] == pytest.approx(min(every.values()))


def test_neighbours_that_stand_in_for_each_other_are_not_both_left_out():
    single, pair = np.array([[1.0, 1.0, 1.5]]), np.array([[9.0, 2.5]])
    assert cheapest(single, pair, 2).dropped[0, 2].tolist() == [True, False, True]
    assert cheapest(single, pair, 2).value[0].tolist() == [0.0, 1.0, 2.5]


def test_a_run_of_layers_costs_no_less_than_a_part_of_it():
    """Where two together lose less than one, by luck, three would seem to win something."""
    ways = cheapest(np.ones((1, 4)), np.full((1, 3), 0.2), 4)
    assert ways.value[0].tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_units_share_what_is_to_be_left_out():
    """Beside all numbers one by one, of three units of which one counts double."""
    single, pair = scores(3, 4)
    ways, weight = cheapest(single, pair, 4), np.array([1.0, 2.0, 1.0])
    every = [
        (float(weight @ counts) / 4, sum(weight[u] * ways.value[u, count] for u, count in enumerate(counts)) / 4)
        for counts in itertools.product(range(5), repeat=3)
    ]
    for mean in (0.0, 0.7, 1.5, 2.9, 4.0):
        # the lowest line under all of them: units take turns between two
        lines = [
            a[1] + (mean - a[0]) / (b[0] - a[0]) * (b[1] - a[1]) for a in every for b in every if a[0] <= mean < b[0]
        ] + [cost for at, cost in every if at == mean]
        cost, counts = spread(ways, weight, mean)
        assert cost == pytest.approx(min(lines))
        assert weight @ counts / 4 >= mean - 1e-9
    with pytest.raises(ValueError, match="at most 4 can be"):
        spread(ways, weight, 4.5)


def test_what_is_won_on_noise_is_seen():
    """Texts that differ in which layer they can do without, and tokens that differ by chance alone."""
    random = np.random.default_rng(0)
    row = np.repeat(np.arange(8), 50)
    chance = random.exponential(size=(400, 6))
    alike = np.zeros((400, 5))

    def won(single: np.ndarray, pair: np.ndarray) -> tuple[float, float]:
        both = []
        for scored in ((single, pair), dealt(single, pair, np.random.default_rng(1))):
            ways = cheapest(pooled(scored[0], row, 8), pooled(scored[1], row, 8), 5)
            fixed = cheapest(scored[0].mean(0)[None], scored[1].mean(0)[None], 5)
            both.append(1 - spread(ways, np.ones(8), 2.0)[0] / spread(fixed, np.ones(1), 2.0)[0])
        return both[0], both[1]

    real, noise = won(chance, alike + chance[:, :-1] + chance[:, 1:])
    assert real == pytest.approx(noise, abs=0.05) and noise > 0.03, "all that is won is luck"
    taste = chance * np.where(np.arange(6) == (row % 6)[:, None], 0.1, 1.0)
    real, noise = won(taste, alike + taste[:, :-1] + taste[:, 1:])
    assert real > noise + 0.2


def test_dealing_keeps_each_layers_mean():
    single, pair = scores(500, 5)
    other, joined = dealt(single, pair, np.random.default_rng(0))
    assert other.mean(0) == pytest.approx(single.mean(0)) and joined.mean(0) == pytest.approx(pair.mean(0))
    assert not np.allclose(other, single)


def test_a_text_is_the_mean_of_its_tokens():
    found = pooled(np.array([[1.0, 2.0], [3.0, 4.0], [7.0, 8.0]]), np.array([0, 0, 1]), 2)
    assert found.tolist() == [[2.0, 3.0], [7.0, 8.0]]
