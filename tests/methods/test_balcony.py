"""Balcony against the paper's forward and loss written by hand, on a tiny Llama."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from depthdial.methods import Balcony, method_named
from depthdial.models.checkpoint import Plugin, attach, parts_of, save
from depthdial.models.convert import convert
from depthdial.models.fingerprint import fingerprint

IDS = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(0))
METHOD = Balcony(exits=(1, 3, 4), stop=1)
STOPS = torch.tensor([-1.0, 0.0, 1.0, 2.0])
"""The first exit, the second, the third, and the full base: one for each of the rows."""


@pytest.fixture
def pair(tiny_model: Callable) -> tuple[Any, Any]:
    """A stock model, and the same converted, with exit blocks that are none of its layers."""
    model: Any = convert(tiny_model("llama"), METHOD)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in parts_of(model).items():
        change = torch.randn(tensor.shape, generator=generator) * 0.1
        tensor.copy_(tensor + change if tensor.ndim == 1 or "norm" in name else change * 2)
    return tiny_model("llama"), model


def blocks_of(stock: Any, model: Any) -> Any:
    """The exits' blocks as layers of a stock model."""
    blocks = torch.nn.ModuleList(copy.deepcopy(stock.model.layers[0]) for _ in METHOD.exits)
    blocks.load_state_dict(model.converted.own.state_dict())
    return blocks


def by_hand(stock: Any, blocks: Any, row: Tensor, exit: int) -> Tensor:
    """Logits [T, V] of one row through an exit of METHOD; the one after the last is the base."""
    x, places = stock.model.embed_tokens(row[None]), torch.arange(len(row))[None]
    how = {"position_embeddings": stock.model.rotary_emb(x, position_ids=places), "position_ids": places}
    depth = [*METHOD.exits, len(stock.model.layers)][exit]
    for layer in stock.model.layers[:depth]:
        x = layer(x, **how)
    if exit < len(METHOD.exits):
        x = blocks[exit](x, **how)
    return stock.lm_head(stock.model.norm(x))[0]


def test_each_row_leaves_by_its_exit(pair: tuple[Any, Any]):
    stock, model = pair
    model.converted.set(offset=STOPS)
    with torch.no_grad():
        logits = model(IDS).logits
        for exit, (row, ours) in enumerate(zip(IDS, logits, strict=True)):
            torch.testing.assert_close(ours, by_hand(stock, blocks_of(stock, model), row, exit), rtol=1e-5, atol=1e-5)
    assert model.route.layers_used.tolist() == [[n] * 9 for n in (2, 4, 5, 6)], "an exit's layers and its own block"


def test_a_cached_text_is_that_of_one_pass(pair: tuple[Any, Any]):
    stock, model = pair
    model.converted.set(offset=STOPS)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for part in (IDS[:, :4], *IDS[:, 4:].split(1, 1)):
            logits = model(part, past_key_values=cache, use_cache=True).logits[:, -1]
        for exit, (row, ours) in enumerate(zip(IDS, logits, strict=True)):
            torch.testing.assert_close(
                ours, by_hand(stock, blocks_of(stock, model), row, exit)[-1], rtol=1e-5, atol=1e-5
            )
    left = [(layer.keys != 0).any(-1).all(-1).all(-1).tolist() for layer in cache.layers]  # type: ignore[union-attr]
    assert left[:6] == [[True] * 4] + [[False, True, True, True]] * 2 + [[False, False, True, True]] + (
        [[False, False, False, True]] * 2
    ), "layers above an exit hold nothing"
    assert left[6:] == [[exit == row for row in range(4)] for exit in range(3)], "each exit has keys of its own"


def test_without_an_exit_it_is_the_base_bit_for_bit(pair: tuple[Any, Any]):
    stock, model = pair
    for offset in (2.0, math.inf):
        model.converted.set(offset=offset)
        assert torch.equal(model(IDS).logits, stock(IDS).logits) and model.route.cost() == 1.0


def test_an_exit_before_the_last_layer_with_its_weights_is_the_base(tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), Balcony(exits=(5,), stop=0))
    stock = tiny_model("llama")
    torch.testing.assert_close(model(IDS).logits, stock(IDS).logits, rtol=0, atol=0)
    assert model.route.decisions[5].keep.all(), "through its own block"


def test_a_block_begins_as_the_last_layer_with_the_input_norm_of_its_place(tiny_model: Callable):
    stock: Any = tiny_model("llama")
    for i, layer in enumerate(stock.model.layers):
        torch.nn.init.constant_(layer.input_layernorm.weight, 1 + i / 10)
    parts = parts_of(convert(stock, METHOD))
    assert {name.split(".")[1] for name in parts} == {"0", "1", "2"} and all(n.startswith("own.") for n in parts)
    last = dict(stock.model.layers[5].named_parameters())
    for name, tensor in parts.items():
        _, exit, own = name.split(".", 2)
        place = METHOD.exits[int(exit)]
        expected = stock.model.layers[place].input_layernorm.weight if own == "input_layernorm.weight" else last[own]
        assert torch.equal(tensor, expected), name
        assert tensor.dtype == torch.float32


def test_one_batch_trains_all_exits_and_nothing_else(pair: tuple[Any, Any]):
    """The gradient of the sum over exits of KL(base || exit): a row for each exit is as many terms of it."""
    stock, model = pair
    rows = IDS[:1].expand(3, -1)
    with torch.no_grad():
        teacher = stock(rows).logits.log_softmax(-1)
    with model.converted.using(offset=STOPS[:3], training=True):
        logits = model(rows).logits
    F.kl_div(logits.log_softmax(-1), teacher, log_target=True, reduction="sum").backward()
    ours = {name: weight.grad for name, weight in model.converted.own.named_parameters()}
    assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)
    assert len([w for w in model.parameters() if w.requires_grad]) == len(ours) == 3 * 9
    blocks = blocks_of(stock.requires_grad_(False), model).requires_grad_()
    for exit in range(3):
        student = by_hand(stock, blocks, IDS[0], exit).log_softmax(-1)
        F.kl_div(student, teacher[0], log_target=True, reduction="sum").backward()
    for name, weight in blocks.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0
        torch.testing.assert_close(ours[name], weight.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_an_exit_costs_its_layers_its_block_and_the_head(pair: tuple[Any, Any]):
    stock, model = pair
    model.converted.set(offset=STOPS)
    model(IDS)
    layer = sum(p.numel() for p in stock.model.layers[0].parameters() if p.ndim == 2)
    head = stock.lm_head.weight.numel()
    expected = torch.tensor([(n * layer + head) / (6 * layer + head) for n in (2, 4, 5, 6)])
    torch.testing.assert_close(model.route.token_cost(), expected[:, None].expand(4, 9))
    assert model.converted.ledger.floor == pytest.approx(float(expected[0]))


def test_a_text_is_written_through_one_exit(pair: tuple[Any, Any]):
    stock, model = pair
    for exit, offset in enumerate(STOPS.tolist()):
        model.converted.set(offset=offset)
        ids = IDS[:1]
        with torch.no_grad():
            for _ in range(12):
                chosen = by_hand(stock, blocks_of(stock, model), ids[0], exit)[-1].argmax()
                ids = torch.cat([ids, chosen[None, None]], 1)
        written = model.generate(IDS[:1], max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert torch.equal(written, ids)


def test_saved_and_loaded_it_has_the_same_exits(pair: tuple[Any, Any], tiny_model: Callable, tmp_path: Path):
    stock, model = pair
    save(model, tmp_path / "balcony", Plugin("balcony", METHOD, fingerprint(stock)))
    again: Any = attach(tiny_model("llama"), tmp_path / "balcony")
    assert again.converted.method == METHOD
    for each in (model, again):
        each.converted.set(offset=STOPS)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_the_dial_has_a_stop_for_each_exit_and_the_base():
    method = method_named("balcony", {"exits": [2, 4]})
    assert method.stops(method.program(6)) == [-1, 0, 1]
    assert Balcony(exits=(2, 4), stop=0).stops(method.program(6)) == [0, 1, 2]
    assert [own.place for own in Balcony().program(30).own] == [12, 16, 20, 24, 27]
    assert [own.place for own in Balcony().program(2).own] == [1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"exits": [4, 2]}, "exits must rise"),
        ({"exits": [2, 2]}, "exits must rise"),
        ({"exits": [2, 4], "stop": 3}, "there is no 3"),
        ({"stop": -1}, "there is no -1"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        method_named("balcony", fields)


@pytest.mark.parametrize("exits", [(0, 2), (2, 6)])
def test_exits_that_the_model_lacks_are_refused(tiny_model: Callable, exits: tuple[int, ...]):
    with pytest.raises(ValueError, match="do not fit a model of 6 layers"):
        convert(tiny_model("llama"), Balcony(exits=exits))
