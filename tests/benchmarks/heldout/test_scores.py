"""Means over passes, and intervals that take rows, not tokens, for the sample."""

from __future__ import annotations

import math

import pytest
import torch

from heldout.scores import Scores


def scores(more: list[float]) -> Scores:
    n = len(more)
    base = torch.linspace(1.0, 2.0, n)
    return Scores(
        ce=base + torch.tensor(more),
        base_ce=base,
        kl=torch.tensor(more).abs(),
        agree=torch.arange(n) % 4 != 0,
        cost=torch.full((n,), 0.8),
        layers=torch.arange(n) % 3 + 20,
        row=torch.arange(n) // 4,
    )


def test_means():
    all_ = scores([0.1, 0.3] * 6).summary()
    assert (all_.tokens, all_.layers, all_.agreement) == (12, 21.0, 0.75)
    assert all_.ratio == pytest.approx(math.exp(0.2))
    assert all_.perplexity == pytest.approx(math.exp(all_.ce))
    assert all_.ce - all_.base_ce == pytest.approx(0.2)
    assert all_.cost == pytest.approx(0.8)


def test_equal_rows_have_no_interval_and_unequal_ones_do():
    same = scores([0.1, 0.3] * 6).summary()
    assert same.ratio_low == pytest.approx(same.ratio) == pytest.approx(same.ratio_high)
    other = scores([0.1] * 4 + [0.2] * 4 + [0.3] * 4).summary()
    half = 1.96 * 0.1 / math.sqrt(3)  # three rows with a standard deviation of 0.1
    assert other.ratio_high == pytest.approx(math.exp(0.2 + half))
    assert other.kl_half == pytest.approx(half)


def test_a_part_of_the_passes():
    where = torch.tensor([True, False] * 6)
    part = scores([0.1, 0.3] * 6).summary(where)
    assert part.tokens == 6
    assert part.kl == pytest.approx(0.1)
