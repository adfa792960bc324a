"""Router and adapter, against their formulas written out."""

from typing import Any

import pytest
import torch

from depthdial.core.layers import Adapter, LinearRouter, Router, plain


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


def hooked(layer: Any) -> None:
    """Its weight is elsewhere until it is called, as accelerate does it."""
    weight, forward = layer.weight, layer.forward

    def brought(x: torch.Tensor) -> torch.Tensor:
        layer.weight = weight
        try:
            return forward(x)
        finally:
            layer.weight = torch.nn.Parameter(weight.to("meta"))

    layer.weight = torch.nn.Parameter(weight.to("meta"))
    layer.forward = brought


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", [
    lambda: Router(16, 4, 1e-5), lambda: Router(16, 4, 1e-5, "tanh_norm"), lambda: LinearRouter(16),
    lambda: LinearRouter(16, classes=1), lambda: Adapter(16, 8),
])  # fmt: skip
def test_layers_are_called_where_their_weights_are_not_at_hand(made, dtype: torch.dtype):
    part = stirred(made()).to(dtype)
    expected = part(X.to(dtype))
    for layer in list(part.children()):
        hooked(layer)
    found = part(X.to(dtype))
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


class Scaled(torch.nn.Module):
    """Another library's layer around ours."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base, self.in_features, self.out_features = base, base.in_features, base.out_features
        self.weight = base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linspace(2, 3, self.out_features) * self.base(x)


@pytest.mark.parametrize("name", ["enc", "dec", "head", "gate", "up", "down", "linear"])
def test_a_foreign_layer_is_called_and_never_folded(name: str):
    part: Any = (
        LinearRouter(16) if name == "linear" else Adapter(16, 8) if name in "gate up down" else Router(16, 4, 1e-5)
    )
    part = stirred(part)
    name = "head" if name == "linear" else name
    before = part(X)
    layer = part.get_submodule(name)
    assert isinstance(layer, torch.nn.Linear)
    setattr(part, name, Scaled(layer))
    found = part(X)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(2, 3, layer.out_features)[:, None])
    setattr(part, name, layer)
    torch.testing.assert_close(found, part(X), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)
    if name in ("dec", "head"):
        setattr(part, name, Scaled(layer))
        with pytest.raises(ValueError, match="a Scaled in a router cannot be folded; merge"):
            _ = part.folded


def test_hooks_and_tensor_types_make_a_layer_more_than_its_weight():
    layer = torch.nn.Linear(4, 4, bias=False)
    assert plain(layer) and plain(torch.nn.RMSNorm(4)) and not plain(Scaled(layer))
    handle = layer.register_forward_hook(lambda *_: None)
    assert not plain(layer)
    handle.remove()
    assert plain(layer)
    torch.nn.utils.parametrizations.weight_norm(layer)
    assert not plain(layer)


def test_parameters_are_reset_as_they_were_made():
    for made in (lambda: Router(16, 4, 1e-5, start=2.0), lambda: LinearRouter(16), lambda: Adapter(16, 8)):
        torch.manual_seed(0)
        part = stirred(made())
        part.reset_parameters()
        if isinstance(part, Router):
            assert part.bias.item() == 2.0 and part.norm.weight.eq(1).all()
        if isinstance(part, Adapter):
            assert not part.down.weight.any()
        assert all(weight.isfinite().all() for weight in part.parameters())
