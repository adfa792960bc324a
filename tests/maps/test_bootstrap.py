"""Intervals over groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depthdial.maps.bootstrap import MOST, Bootstrap


def grouped(seed=0, groups=60, size=20, spread=1.0):
    """Tokens whose groups differ by `spread`: independent groups, dependent tokens."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    return group, generator.normal(0, spread, groups)[group] + generator.normal(0, 0.1, groups * size)


def test_groups_not_tokens_are_the_sample():
    group, values = grouped()
    cells = np.zeros(len(values), np.int64)
    mean, low, high = Bootstrap(group).means(values, cells, 1).interval(0)
    assert mean == pytest.approx(values.mean()) and low < mean < high
    expected = 2 * 1.96 * values.reshape(60, 20).mean(1).std(ddof=1) / math.sqrt(60)
    assert high - low == pytest.approx(expected, rel=0.1)
    naive = Bootstrap(np.arange(len(values))).means(values, cells, 1).interval(0)
    assert naive.high - naive.low < (high - low) / 3


def test_95_of_100_intervals_hold_the_truth():
    content = 0
    for seed in range(100):
        group, values = grouped(seed, groups=40, size=5)
        result = Bootstrap(group, draws=400, seed=seed).means(values, np.zeros(len(values), np.int64), 1).interval(0)
        content += result.low < 0 < result.high
    assert 86 <= content <= 100


def test_differences_are_paired_by_group():
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(50), 2)
    level = generator.normal(0, 5, 50)[group]
    cells = np.tile([0, 1], 50)
    values = level + cells * 1.0 + generator.normal(0, 0.1, 100)
    estimate = Bootstrap(group).means(values, cells, 2)
    paired = estimate.difference(1, 0)
    assert paired.mean == pytest.approx(1.0, abs=0.1) and paired.high - paired.low < 0.15
    assert estimate.interval(0).high - estimate.interval(0).low > 2


def test_what_is_not_known_is_nan():
    group = np.array([0, 0, 1, 1, 2, 2])
    values, cells = np.array([1.0, 2, 3, 4, math.nan, 6]), np.array([0, 0, 0, 1, 0, -1])
    estimate = Bootstrap(group).means(values, cells, 3)
    assert estimate.tokens.tolist() == [3, 1, 0]
    assert estimate.mean[0] == 2 and math.isnan(estimate.mean[2])
    assert math.isnan(estimate.interval(1).low) and estimate.interval(1).mean == 4
    assert Bootstrap(np.zeros(5, np.int64)).means(np.ones(5), np.zeros(5, np.int64), 1).interval(0).to_json() == {
        "mean": 1.0, "low": None, "high": None,
    }  # fmt: skip


def test_a_constant_is_known_exactly():
    group = np.repeat(np.arange(30), 2)
    assert Bootstrap(group).means(np.full(60, 6.0), np.zeros(60, np.int64), 1).interval(0) == (6, 6, 6)


def test_many_groups_are_drawn_in_bundles():
    count = 3 * MOST
    values = np.random.default_rng(0).normal(0, 1, count)
    bootstrap = Bootstrap(np.arange(count), draws=200)
    result = bootstrap.means(values, np.zeros(count, np.int64), 1).interval(0)
    assert bootstrap.count == MOST
    assert result.high - result.low == pytest.approx(2 * 1.96 / math.sqrt(count), rel=0.25)


def test_rates_and_correlations():
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(100), 10)
    x = generator.normal(0, 1, 1000)
    y = 0.6 * x + 0.8 * generator.normal(0, 1, 1000)
    bootstrap, every = Bootstrap(group), np.ones(1000, bool)
    r = bootstrap.correlation(x, y, every)
    assert r.mean == pytest.approx(np.corrcoef(x, y)[0, 1]) and r.low < 0.6 < r.high and r.high - r.low < 0.15
    ran = np.stack([x > 0, np.ones(1000, bool)], 1)
    rates = bootstrap.rates(ran, y > 0)
    assert rates.mean[0] == pytest.approx((x > 0)[y > 0].mean()) and rates.interval(1) == (1, 1, 1)
    assert math.isnan(bootstrap.correlation(x, y, np.zeros(1000, bool)).mean)
