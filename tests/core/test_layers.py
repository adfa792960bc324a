"""Router and adapter, against their formulas written out."""

import pytest
import torch

from depthdial.core.layers import Adapter, LinearRouter, Router


def stirred(part):
    with torch.no_grad():
        for p in part.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return part


X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("order", ["norm_tanh", "tanh_norm"])
def test_router_is_its_formula(order: str):
    router = stirred(Router(16, 4, 1e-3, order))
    code = X @ router.enc.weight.T
    inner = {
        "norm_tanh": lambda c: rms(c, router.norm.weight, 1e-3).tanh(),  # released code
        "tanh_norm": lambda c: rms(c.tanh(), router.norm.weight, 1e-3),  # the paper's formula
    }[order](code)
    expected = (inner @ router.dec.weight.T @ router.head.weight.T)[..., 0] + router.bias
    torch.testing.assert_close(router(X), expected)
    assert router(X).shape == (2, 5)


def test_router_counts_its_folded_size_and_starts_at_its_bias():
    router = Router(16, 4, 1e-5, start=2.0)
    assert [tuple(p.shape) for p in (router.enc.weight, router.dec.weight, router.head.weight)] == [
        (4, 16), (16, 4), (1, 16)
    ]  # fmt: skip
    assert router.macs == 4 * 16 + 4  # dec and head are one vector
    assert router.runs_for == "all"
    logits = router(torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(1)))
    assert abs(logits.detach().mean().item() - 2.0) < 0.5 and logits.detach().std() > 0
    assert Router(4, 16, 1e-5).enc.out_features == 1


def test_logits_are_fp32_whatever_comes_in():
    router = stirred(Router(16, 4, 1e-5))
    assert router(X.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(router(X.bfloat16()), router(X), rtol=0.1, atol=0.3)
    adapter = stirred(Adapter(16, 3))
    assert adapter(X.bfloat16()).dtype == torch.bfloat16


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match="norm_tanh"):
        Router(16, 4, 1e-5, "sideways")


def test_adapter_is_its_formula_and_starts_at_zero():
    fresh = Adapter(16, 3)
    assert not fresh(X).any() and fresh.gate.weight.any()
    adapter = stirred(Adapter(16, 3))
    gate = X @ adapter.gate.weight.T
    expected = (gate * gate.sigmoid() * (X @ adapter.up.weight.T)) @ adapter.down.weight.T
    torch.testing.assert_close(adapter(X), expected, rtol=1e-5, atol=1e-4)
    assert adapter.macs == 3 * 16 * 3
    assert adapter.runs_for == "skipped"


def test_linear_router_of_two_classes_is_their_difference_in_fp32():
    two, one = stirred(LinearRouter(16)), stirred(LinearRouter(16, classes=1))
    run, skip = (X @ two.head.weight.T).unbind(-1)
    torch.testing.assert_close(two(X), run - skip)
    torch.testing.assert_close(one(X), (X @ one.head.weight.T)[..., 0])
    assert two.macs == one.macs == 16, "at inference both rows are one vector"
    assert two.runs_for == "all" and two.bfloat16()(X.bfloat16()).dtype == torch.float32
