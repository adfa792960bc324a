"""A gate by itself: strict at its cut, hard and soft weights, and nothing without a router."""

from __future__ import annotations

import math

import pytest
import torch

from depthdial.core.gate import Gate
from depthdial.core.layers import Router

X = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("order", ["norm_tanh", "tanh_norm"])
@pytest.mark.parametrize("weights", ["hard", "soft"])
@torch.no_grad()
def test_weights_follow_the_shifted_logit(order: str, weights):
    router = Router(16, 4, 1e-5, order)
    logit = router(X) + 0.3
    attn, mlp = Gate(router, 0.2, weights, None).decide(X, 0.3)
    assert torch.equal(attn.keep, logit > 0.2) and torch.equal(mlp.keep, attn.keep)
    assert torch.equal(attn.run, attn.keep.float()) and torch.equal(attn.skip, (~attn.keep).float())
    g = logit.sigmoid() if weights == "soft" else torch.ones(())
    torch.testing.assert_close(mlp.run, attn.keep * g)
    torch.testing.assert_close(mlp.skip, ~attn.keep * ((1 - g) if weights == "soft" else 1.0))


@torch.no_grad()
def test_infinity_keeps_everything_with_weight_one():
    offset = torch.tensor([[0.0], [math.inf]])
    _, mlp = Gate(Router(16, 4, 1e-5), 0.0, "soft", None).decide(X, offset)
    assert mlp.keep[1].all() and (mlp.run[1] == 1).all() and (mlp.skip[1] == 0).all()


def test_without_a_router_somebody_else_decides():
    with pytest.raises(ValueError, match="no router"):
        Gate(None, 0.0, "hard", None).decide(X, 0.0)
