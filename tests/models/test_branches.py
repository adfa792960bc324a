"""All exits in one pass of the base: each is what a pass through it alone gives, and nothing runs twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from depthdial.methods import Balcony, FlexiDepth, Readout, Static
from depthdial.models.branches import branches_of
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import convert
from depthdial.models.halves import Halves

METHOD = Balcony(exits=(1, 3, 4), stop=2)


@pytest.fixture(params=["llama", "gemma3_text"])
def model(request: pytest.FixtureRequest, tiny_model: Callable) -> Any:
    converted = convert(tiny_model(request.param), METHOD)
    for tensor in parts_of(converted).values():
        tensor.add_(torch.randn(tensor.shape) * 0.1)
    return converted


@pytest.fixture
def calls(model: Any) -> list[str]:
    """The layers and blocks that run, in order."""
    names: list[str] = []
    decoder = model.get_decoder()
    for kind, modules in (("layer", decoder.layers), ("block", model.converted.own)):
        for i, module in enumerate(modules):
            module.register_forward_hook(lambda *_, name=f"{kind} {i}": names.append(name))
    return names


def test_each_exit_is_what_a_pass_through_it_gives(model: Any, packed: Callable):
    batch, halves = packed(), Halves(model)
    branches, how = branches_of(model, halves), {"position_ids": packed()["position_ids"]}
    assert branches is not None
    teacher, exits = branches.run(halves.lower(batch["input_ids"], **how), how["position_ids"])
    decoder = model.get_decoder()
    for offset, ours in zip((-2.0, -1.0, 0.0, math.inf), (*exits.unbind(1), teacher), strict=True):
        model.converted.set(offset=offset)
        expected = decoder(batch["input_ids"], use_cache=False, **how).last_hidden_state
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert exits.requires_grad and not teacher.requires_grad


def test_each_layer_and_block_runs_once(model: Any, packed: Callable, calls: list[str]):
    batch, halves = packed(), Halves(model)
    branches = branches_of(model, halves)
    assert branches is not None and not calls
    lower = halves.lower(batch["input_ids"], position_ids=batch["position_ids"])
    branches.run(lower, batch["position_ids"])[1].sum().backward()
    assert sorted(calls) == [*(f"block {i}" for i in range(3)), *(f"layer {i}" for i in range(6))]
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert learned == {name for name, weight in model.named_parameters() if weight.requires_grad} and learned


def test_a_pass_of_each_exit_is_priced(model: Any):
    branches = branches_of(model, Halves(model))
    assert branches is not None and branches.offsets == [-2, -1, 0]
    assert branches.each.trace.keep(branches.each.tokens.offset).sum(0).tolist() == [2, 4, 5]


@pytest.mark.parametrize(
    "method",
    [Static(order=(3, 1), count=1), FlexiDepth(first=2), Readout(layers=(2,), rule="calm")],
    ids=lambda method: type(method).__name__,
)
def test_other_methods_have_more_to_decide_than_an_exit(tiny_model: Callable, method: Any):
    model = convert(tiny_model("llama"), method)
    assert not model.converted.program.branches and branches_of(model, Halves(model)) is None  # type: ignore[union-attr]
