"""Soft gates against the equation written by hand: nothing is skipped, nothing is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from depthdial.methods import Highway
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import revert

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_forward_is_the_papers(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), Highway(first=1))
    logits, cost = model(IDS).logits, model.route.token_cost()
    weights = {int(name.split(".")[1]): weight for name, weight in parts_of(model).items()}
    ledger = model.converted.ledger
    dense, floor = ledger.dense, ledger.floor
    stock: Any = revert(model)
    places = torch.arange(9)[None]
    x = stock.model.embed_tokens(IDS)
    rope = stock.model.rotary_emb(x, position_ids=places)
    for i, layer in enumerate(stock.model.layers):
        block = layer(x, position_embeddings=rope, position_ids=places)
        g = (layer.input_layernorm(x) @ weights[i].T).sigmoid() if i in weights else 1.0
        x = g * block + (1 - g) * x
    torch.testing.assert_close(logits, stock.lm_head(stock.model.norm(x)))
    assert len(weights) == 5 and sum(work.look for work in ledger.steps) == 5 * 32
    torch.testing.assert_close(cost, torch.full((2, 9), (dense + 5 * 32) / dense))
    assert floor == (dense + 5 * 32) / dense, "no dial makes it cheaper"


def test_gates_learn(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), Highway())
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters())
    assert model.converted.method.loss(model.route.last.tokens, model.route.last.trace) is None
