"""The lower layers once, the upper ones as often as wanted: together they are the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.laws.toys import Exiting, Leaving, Looping

from depthdial.methods import Dense
from depthdial.models.families import FAMILIES
from depthdial.models.halves import Halves


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", [0, 2, 5])
def test_lower_and_upper_are_the_whole(
    tiny_model: Callable, adaptive: Callable, packed: Callable, family: str, first: int
):
    model: Any = adaptive(tiny_model(family), first=first)
    batch, halves = packed(3, 16), Halves(model)
    ids, positions = batch["input_ids"], batch["position_ids"]
    assert halves.first == first
    layers, norm = model.get_decoder().layers, model.get_decoder().norm
    with torch.no_grad():
        lower = halves.lower(ids, position_ids=positions)
        for offset in (0.0, math.inf, torch.tensor([0.0, -1.0, math.inf])):
            model.converted.set(offset=offset)
            whole = model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            used = model.route.layers_used
            assert torch.equal(halves.upper(lower, position_ids=positions), whole)
            assert torch.equal(model.route.layers_used, used)
    assert model.get_decoder().layers is layers and model.get_decoder().norm is norm


def test_documents_of_a_row_do_not_see_each_other(tiny_model: Callable, adaptive: Callable, packed: Callable):
    model: Any = adaptive(tiny_model("llama"))
    batch, halves = packed(1, 16), Halves(model)
    start = int((batch["position_ids"][0] == 0).nonzero()[-1])
    with torch.no_grad():
        row = halves.upper(
            halves.lower(batch["input_ids"], position_ids=batch["position_ids"]), position_ids=batch["position_ids"]
        )
        alone = model.get_decoder()(batch["input_ids"][:, start:], use_cache=False).last_hidden_state
    torch.testing.assert_close(row[:, start:], alone, rtol=1e-4, atol=1e-4)


def test_gradients_stop_below_and_a_failure_puts_things_back(
    tiny_model: Callable, adaptive: Callable, packed: Callable
):
    model: Any = adaptive(tiny_model("llama"))
    batch, halves = packed(2, 8), Halves(model)
    lower = halves.lower(batch["input_ids"], position_ids=batch["position_ids"])
    assert not lower.requires_grad
    assert halves.upper(lower, position_ids=batch["position_ids"]).requires_grad
    layers = model.get_decoder().layers
    with pytest.raises((RuntimeError, IndexError)):
        halves.lower(torch.full((1, 4), 10**6), position_ids=torch.arange(4)[None])
    assert model.get_decoder().layers is layers


@pytest.mark.parametrize(("method", "first"), [(Looping(), 4), (Exiting(), 2), (Leaving(), 2), (Dense(), 0)])
def test_a_program_is_cut_where_it_begins_to_differ(
    tiny_model: Callable, adapted: Callable, packed: Callable, method: Any, first: int
):
    model: Any = adapted(tiny_model("llama"), method)
    batch, halves = packed(3, 16), Halves(model)
    ids, positions = batch["input_ids"], batch["position_ids"]
    assert halves.first == first
    with torch.no_grad():
        lower = halves.lower(ids, position_ids=positions)
        for offset in (0.0, math.inf):
            model.converted.set(offset=offset)
            whole = model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            cost = model.route.token_cost()
            assert torch.equal(halves.upper(lower, position_ids=positions), whole)
            assert torch.equal(model.route.token_cost(), cost)
