"""Mixture-of-Depths against the paper's forward by hand: picked tokens are gathered and run as a shorter sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.asking import ask, tokens
from torch import Tensor
from torch.nn import functional as F

from depthdial.core.method import Dims
from depthdial.methods import MixtureOfDepths, method_named
from depthdial.models.convert import revert

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))


def picked(r: Tensor, k: int) -> list[int]:
    return sorted(r.topk(k).indices.tolist())


def by_hand(model: Any, row: Tensor, chosen: Callable[[int, Tensor, Tensor], list[int]], weight: Callable) -> Tensor:
    """Logits [T, V] of one row of a stock Llama. chosen(layer, normed x, r): the tokens that run, every other layer."""
    x, places = model.model.embed_tokens(row), torch.arange(len(row))
    for i, layer in enumerate(model.model.layers):
        run, r = list(range(len(row))), torch.ones(len(row))
        if i % 2:
            z = layer.input_layernorm(x)
            r = weight(i, z)
            run = chosen(i, z, r)
        if not run:
            continue
        some = x[run][None]
        rope = model.model.rotary_emb(some, position_ids=places[run][None])  # positions stay as they are
        block = layer(some, position_embeddings=rope, position_ids=places[run][None])[0]
        x = x.index_put((torch.tensor(run),), x[run] + r[run, None] * (block - x[run]))
    return model.lm_head(model.model.norm(x))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["training", "top_k", "predictor"])
@pytest.mark.parametrize("weights", ["raw", "sigmoid"])
@torch.no_grad()
def test_forward_is_the_papers(tiny_model: Callable, adapted: Callable, attention: str, mode: str, weights: Any):
    base: Any = tiny_model("llama", attn_implementation=attention)
    method = MixtureOfDepths(
        capacity=0.4, predictor_ratio=4, weights=weights, choice="top_k" if mode == "top_k" else "predictor"
    )
    model: Any = adapted(base, method)
    model.converted.set(training=mode == "training")
    logits = model(IDS).logits
    keeps = {s: d.keep for s, d in model.route.decisions.items()}
    assert set(keeps) == {1, 3, 5}
    assert all(keep.any() and not keep.all() for keep in keeps.values())
    assert mode == "predictor" or all((keep.sum(-1) == 4).all() for keep in keeps.values()), "int(0.4 * 12)"
    routed = model.converted.routed
    heads = {s: unit.parts.get_parameter("router.head.weight")[0] for s, unit in routed.items()}
    foresee = {s: unit.parts["predictor"] for s, unit in routed.items()}
    stock: Any = revert(model)
    stock.set_attn_implementation("sdpa")  # causal without a mask

    def weight(layer: int, z: Tensor) -> Tensor:
        return z @ heads[layer] if weights == "raw" else (z @ heads[layer]).sigmoid()

    def chosen(layer: int, z: Tensor, r: Tensor) -> list[int]:
        if mode != "predictor":
            return picked(r, 4)
        return (foresee[layer](z) > 0).nonzero()[:, 0].tolist()

    for row, ours in zip(IDS, logits, strict=True):
        torch.testing.assert_close(ours, by_hand(stock, row, chosen, weight), rtol=1e-4, atol=1e-4)


def test_the_predictor_learns_from_picks_alone(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), MixtureOfDepths(capacity=0.25, predictor_ratio=4))
    model.converted.set(training=True)
    logits = model(IDS).logits
    loss = model.converted.method.loss(model.route.last.tokens, model.route.last.trace).view(2, 12)
    expected = sum(
        F.binary_cross_entropy(d.score, d.keep.float(), reduction="none") for d in model.route.decisions.values()
    )
    torch.testing.assert_close(loss, expected)
    loss.sum().backward(retain_graph=True)
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved and all(".predictor." in name for name in moved), "a stop-gradient lies before it"
    model.zero_grad()
    logits.square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any(".predictor." in name for name in moved)
    assert all(f"model.layers.{i}.parts.router.head.weight" in moved for i in (1, 3, 5)), "r is on the gradient's path"


@torch.no_grad()
def test_padding_is_never_picked_and_takes_no_capacity():
    method = MixtureOfDepths(capacity=0.5)
    parts = method.parts(method.program(6).steps[1], Dims(8, 16))
    mask = torch.tensor([[False] * 4 + [True] * 6, [True] * 10, [False] * 9 + [True]])
    keep = ask(method, parts, torch.randn(3, 10, 8), real=mask, training=True).keep
    assert keep.sum(-1).tolist() == [3, 5, 1] and not (keep & ~mask).any()


@torch.no_grad()
def test_the_dial_leads_raw_weights_to_the_base():
    method = MixtureOfDepths()
    parts, x = method.parts(method.program(6).steps[1], Dims(8, 16)), torch.randn(6, 8)
    r = parts["router"](x)
    runs = []
    for offset in (0.0, 0.5, 2.0, float("inf")):
        runs.append(method._weight(r, tokens(1, 6, offset=torch.tensor([offset]), training=True)))
    assert torch.equal(runs[0], r) and torch.equal(runs[-1], torch.ones_like(r))
    gaps = [(run - 1).abs().max() for run in runs]
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"capacity": 0.0}, "capacity must lie between 0 and 1"),
        ({"capacity": 1.01}, "capacity must lie"),
        ({"every": 0}, "at least 1"),
        ({"weights": "soft"}, "'raw' or 'sigmoid'"),
        ({"choice": "oracle"}, "'predictor' or 'top_k'"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        method_named("mixture_of_depths", fields)


def test_a_model_with_fewer_layers_than_every_is_refused():
    with pytest.raises(ValueError, match="fit a model of 2 layers"):
        MixtureOfDepths(every=3).program(2)
    assert MixtureOfDepths().program(6).routed == (1, 3, 5) and MixtureOfDepths(every=1).program(2).routed == (0, 1)
