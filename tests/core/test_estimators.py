"""Straight-through: the value of one tensor, the gradient of another. Gumbel: the law of a two-way sample."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.core.estimators import gumbel_sigmoid, reinforced, straight_through
from depthdial.core.tokens import Tokens


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_value_is_hard_exactly_and_gradient_is_soft(numbers: list[float]):
    soft = torch.tensor(numbers, requires_grad=True)
    hard = soft > 0.5
    out = straight_through(hard, soft)
    assert out.dtype == soft.dtype and torch.equal(out, hard.float())
    out.backward(torch.arange(1.0, len(numbers) + 1))
    assert soft.grad is not None and torch.equal(soft.grad, torch.arange(1.0, len(numbers) + 1))


@given(st.floats(-8, 8), st.floats(1e-6, 1 - 1e-6), st.floats(0.05, 5))
def test_a_gumbel_sample_is_a_two_way_softmax_with_noise(logit: float, draw: float, temperature: float):
    """Two Gumbel variables whose difference is the logistic one that `draw` stands for."""
    first = 0.7
    second = first - (math.log(draw) - math.log1p(-draw))
    two = torch.tensor([logit + first, second], dtype=torch.double) / temperature
    ours = gumbel_sigmoid(torch.tensor(logit), torch.tensor(draw, dtype=torch.double), temperature)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), two.softmax(0)[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.3])
def test_it_runs_as_often_as_its_logit_says(logit: float, temperature: float):
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(100_000, generator=generator, dtype=torch.double)
    ran = (gumbel_sigmoid(torch.full(draws.shape, logit), draws, temperature) > 0.5).double().mean()
    rate = 1 / (1 + math.exp(-logit))
    assert abs(float(ran) - rate) < 5 * math.sqrt(rate * (1 - rate) / len(draws))


def test_reinforced_says_more_of_what_came_out_better():
    """The gradient on a chance's logit is (loss - mean) (kept - chance)."""
    logit = torch.randn(3, 50, requires_grad=True)
    keep = torch.rand(3, 50) < logit.sigmoid()
    of = Tokens(torch.zeros(50), torch.arange(50), loss=torch.rand(50))
    reinforced(keep, logit.sigmoid(), of).sum().backward()
    assert logit.grad is not None and of.loss is not None
    expected = (of.loss - of.loss.mean()) * (keep.float() - logit.detach().sigmoid())
    torch.testing.assert_close(logit.grad, expected, rtol=1e-4, atol=1e-5)
