"""Auxiliary losses by hand; SkipLayer's and MoD's own tests see them at work."""

from __future__ import annotations

import torch

from depthdial.core.penalties import off_density, squared_depth, unforeseen

RUN = torch.tensor([[[1.0, 0, 1, 1]], [[0, 0, 1, 0]]])


def test_squared_depth():
    assert squared_depth(RUN).tolist() == [[1, 0, 4, 1]]


def test_off_density_of_a_row_and_of_a_step():
    assert off_density(RUN, 0.5).tolist() == [[0.125] * 4]
    seen = torch.tensor([0.75, 0.25])
    by_tangent = off_density(RUN, 0.5, measured=seen)
    torch.testing.assert_close(by_tangent.mean(), torch.tensor(0.125))
    mask = torch.tensor([[True, True, False, False]])
    assert off_density(RUN, 0.5, mask).tolist() == [[0.25] * 4]
    assert off_density(RUN.bfloat16(), 0.5).dtype == torch.float32


def test_unforeseen_is_cross_entropy():
    scores = torch.tensor([[[0.9, 0.2]], [[0.5, 0.6]]])
    chosen = torch.tensor([[[True, True]], [[False, False]]])
    expected = -(torch.tensor([0.9, 0.2]).log() + torch.tensor([0.5, 0.4]).log())
    torch.testing.assert_close(unforeseen(scores, chosen), expected[None])
