"""Fitting adapters, layer by layer, to what their frozen layers add to the residual stream."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from depthdial.methods import FlexiDepth, Random, Static
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from depthdial.models.families import FAMILIES
from depthdial.train.fit import LayerFit, fit_adapters

METHODS = [
    FlexiDepth(first=2, adapter_ratio=2),
    Random(first=4, adapter_ratio=2),
    Static(order=(5, 1), adapter_ratio=2),
]


def error_of(model: Any, batch: dict[str, torch.Tensor]) -> float:
    fit = LayerFit(model)
    model.converted.set(offset=float("inf"))
    fit.run(batch)
    return float(torch.stack(list(fit.error.values())).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_fitting_lowers_the_error(tiny_model: Callable, packed: Callable, family: str):
    model: Any = convert(tiny_model(family), FlexiDepth(first=2, adapter_ratio=2))
    batch = packed(4, 32)
    assert error_of(model, batch) == pytest.approx(1.0), "an adapter that gives nothing explains nothing"
    errors = fit_adapters(model, itertools.repeat(batch), steps=40, lr=1e-2)
    assert list(errors) == [2, 3, 4, 5]
    assert max(errors.values()) < 0.9
    assert error_of(model, batch) < 0.9


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_only_adapters_move_and_the_dial_is_put_back(tiny_model: Callable, packed: Callable, method: Any):
    base, model = tiny_model("llama"), tiny_model("llama")
    converted: Any = converted_of(convert(model, method))
    converted.set(offset=0.75)
    before = {name: tensor.clone() for name, tensor in parts_of(model).items()}
    errors = fit_adapters(model, itertools.repeat(packed(2, 16)), steps=2)
    assert set(errors) == {unit.step.block for unit in converted.routed.values() if "adapter" in unit.parts}
    assert converted.settings.offset == 0.75
    for name, tensor in parts_of(model).items():
        assert torch.equal(tensor, before[name]) == (".adapter." not in name), name
    converted.set(offset=float("inf"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, base(ids).logits)
    assert not any(layer._forward_hooks for layer in model.get_decoder().layers)


def test_the_error_is_that_of_the_layers_own_update(tiny_model: Callable, adaptive: Callable, packed: Callable):
    model: Any = adaptive(tiny_model("llama"))
    batch = packed(2, 12)
    real = batch["labels"] != -100
    states = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, args, out: states.append((args[0], out)))
    model.converted.set(offset=float("inf"))
    fit = LayerFit(model)
    loss = fit.run(batch)
    total = torch.zeros(())
    for i in (2, 3, 4, 5):
        x, out = states[i]
        update = out - x
        adapter = model.converted.routed[model.converted.program.step(i, "mlp")].parts["adapter"]
        guess = adapter(model.model.layers[i].post_attention_layernorm(x))
        size, miss = update.square().sum(-1)[real], (guess - update).square().sum(-1)[real]
        share = (miss / (size + size.mean())).mean()
        total += share.detach()
        torch.testing.assert_close(fit.error[i], (share / (size / (size + size.mean())).mean()).sqrt().detach())
    torch.testing.assert_close(loss.detach(), total)
    loss.backward()
    assert all((p.grad is not None) == (".adapter." in n) for n, p in model.named_parameters())


def test_nothing_to_fit(tiny_model: Callable, packed: Callable):
    bare = convert(tiny_model("llama"), Random(adapter_ratio=0))
    assert fit_adapters(bare, itertools.repeat(packed()), steps=5) == {}
    model = convert(tiny_model("llama"), FlexiDepth())
    before = {name: tensor.clone() for name, tensor in parts_of(model).items()}
    assert fit_adapters(model, itertools.repeat(packed()), steps=0) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts_of(model).items())
