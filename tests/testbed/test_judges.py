"""Judges against cases whose answer is known."""

import numpy as np
import pytest

from depthdial.testbed.judges import (
    Answers,
    by_k,
    correlations,
    deepest_third,
    measured_needs,
    rank_correlation,
    realised,
)
from depthdial.testbed.tasks import FILLER, HOP


def _answers(k, right, depth, kind=HOP):
    return Answers(np.full(len(k), kind), np.array(k), np.array(right, bool), np.array(depth, float))


def test_rank_correlation_is_spearmans():
    x = np.array([1, 2, 3, 4, 5.0])
    assert rank_correlation(x, x**3) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert rank_correlation(x, np.ones(5)) == rank_correlation(x[:0], x[:0]) == 0
    # with ties: scipy.stats.spearmanr([1, 1, 2, 3], [1, 2, 2, 5]) is 5/6
    assert rank_correlation(np.array([1, 1, 2, 3]), np.array([1, 2, 2, 5])) == pytest.approx(5 / 6, abs=1e-3)


def test_by_k_counts_right_answers_and_layers():
    found = by_k(_answers([0, 0, 2, 2], [1, 0, 1, 1], [1, 3, 4, 6]))
    assert found == {
        "hop": {
            0: {"accuracy": 0.5, "depth": 2.0, "count": 2},
            2: {"accuracy": 1.0, "depth": 5.0, "count": 2},
        }
    }


def test_the_need_is_the_fewest_layers_that_do_it_on_the_mean_of_seeds():
    def seed(*right):
        return {"hop": {k: {"accuracy": a} for k, a in enumerate(right)}, "filler": {0: {"accuracy": 1.0}}}

    dense = {1: [seed(1, 0.99, 0.1)], 2: [seed(1, 1, 0.93), seed(1, 1, 0.99)], 3: [seed(1, 1, 1), seed(1, 1, 0.8)]}
    assert measured_needs(dense) == {"hop": {0: 1, 1: 1, 2: 2}}
    assert measured_needs({1: [seed(0.2, 0.1, 0.1)]}) == {}, "what none can do has no need"


def test_correlations_leave_filler_out():
    need = np.array([1, 1, 2, 2, 3, 3])
    own = _answers([0, 0, 1, 1, 2, 2], [1] * 6, [1, 3, 2, 4, 5, 7])
    told = correlations(own, need)
    assert told["levels"] == pytest.approx(1) and 0.5 < told["answers"] < 1
    filler = _answers([0] * 50, [1] * 50, [8] * 50, FILLER)
    both = Answers(*(np.concatenate(pair) for pair in zip(own, filler, strict=True)))
    assert correlations(both, np.concatenate([need, np.zeros(50, int)])) == told


def test_an_oracle_realises_all_of_the_saving_and_dense_none():
    need = np.array([0, 2, 4, 8])
    assert realised(_answers([0] * 4, [1] * 4, need), need, 8) == 1
    assert realised(_answers([0] * 4, [1] * 4, [8] * 4), need, 8) == 0
    assert realised(_answers([0] * 4, [1] * 4, [0, 0, 0, 0]), need, 8) == 1, "leaving out more saves nothing more"
    assert realised(_answers([0] * 4, [1] * 4, [4, 4, 4, 4]), need, 8) == pytest.approx((4 + 4 + 4) / 18)


def test_the_deepest_third():
    assert deepest_third({k: {"accuracy": k / 10} for k in range(9)}) == pytest.approx(0.7)
