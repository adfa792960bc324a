"""Straight-through: the value of one tensor, the gradient of another."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.core.estimators import straight_through


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_value_is_hard_exactly_and_gradient_is_soft(numbers: list[float]):
    soft = torch.tensor(numbers, requires_grad=True)
    hard = soft > 0.5
    out = straight_through(hard, soft)
    assert out.dtype == soft.dtype and torch.equal(out, hard.float())
    out.backward(torch.arange(1.0, len(numbers) + 1))
    assert soft.grad is not None and torch.equal(soft.grad, torch.arange(1.0, len(numbers) + 1))
