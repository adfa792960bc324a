"""Auxiliary losses by hand; SkipLayer's and MoD's own tests see them at work."""

from __future__ import annotations

import torch

from depthdial.core.penalties import off_density, squared_depth, unforeseen
from depthdial.core.tokens import Tokens

RUN = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0]])


def row(real: torch.Tensor | None = None, rows: int = 1) -> Tokens:
    return Tokens(torch.zeros(4), torch.arange(4), real=real, shape=(rows, 4 // rows))


def test_squared_depth():
    assert squared_depth(RUN).tolist() == [1, 0, 4, 1]


def test_off_density_of_a_row_and_of_a_step():
    assert off_density(RUN, 0.5, row()).tolist() == [0.125] * 4
    assert off_density(RUN, 0.5, row(rows=2)).tolist() == [0.25] * 2 + [0.25] * 2, "each row by itself"
    by_tangent = off_density(RUN, 0.5, row(), torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(by_tangent.mean(), torch.tensor(0.125))
    real = torch.tensor([True, True, False, False])
    assert off_density(RUN, 0.5, row(real)).tolist() == [0.25] * 4
    assert off_density(RUN.bfloat16(), 0.5, row()).dtype == torch.float32


def test_unforeseen_is_cross_entropy():
    scores = torch.tensor([[0.9, 0.2], [0.5, 0.6]])
    chosen = torch.tensor([[True, True], [False, False]])
    expected = -(torch.tensor([0.9, 0.2]).log() + torch.tensor([0.5, 0.4]).log())
    torch.testing.assert_close(unforeseen(scores, chosen), expected)
