"""An interval of a mean that knows that tokens of one text are alike."""

from __future__ import annotations

import math

import pytest
import torch

from heldout.interval import clustered_mean


def test_single_values_as_clusters_give_the_textbook_interval():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    mean, half = clustered_mean(values, torch.arange(4))
    assert mean == 4.0
    assert half == pytest.approx(1.96 * float(values.std()) / 2)


def test_copies_of_a_value_in_a_cluster_are_no_new_evidence():
    values, place = torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.arange(4)
    once, many = clustered_mean(values, place), clustered_mean(values.repeat(50), place.repeat(50))
    assert many.half == pytest.approx(once.half)


def test_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(300):
        level = torch.randn(30, generator=generator)
        place = torch.randint(0, 30, (400,), generator=generator)
        values = level[place] + torch.randn(400, generator=generator)
        mean, half = clustered_mean(values, place)
        hits += abs(mean) <= half
    assert 0.88 < hits / 300 < 0.98


def test_one_cluster_or_none_has_no_interval():
    assert math.isnan(clustered_mean(torch.ones(3), torch.zeros(3, dtype=torch.long)).half)
    assert math.isnan(clustered_mean(torch.zeros(0), torch.zeros(0, dtype=torch.long)).mean)
