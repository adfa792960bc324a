"""Dense: nothing is routed, and the route says so."""

from collections.abc import Callable
from typing import Any

import torch

from depthdial.core.cost import LayerWork, Ledger
from depthdial.core.decision import Site
from depthdial.core.route import Route
from depthdial.methods import Dense
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import convert, routed


def test_the_model_is_the_base_and_every_layer_is_counted(tiny_model: Callable):
    ids = torch.arange(3, 13).view(2, 5)
    base, model = tiny_model("llama"), convert(tiny_model("llama"), Dense())
    route: Any = model.route
    for offset in (0.0, -5.0):
        route.offset = offset
        with torch.no_grad():
            assert torch.equal(model(ids).logits, base(ids).logits)
        assert torch.equal(route.layers_used, torch.full((2, 5), 6))
        assert route.cost() == 1.0 and torch.equal(route.token_cost(), torch.ones(2, 5))
    assert not routed(model) and not parts_of(model)
    assert route.ledger.floor == 1.0


def test_asked_for_a_decision_it_keeps():
    route = Route(Ledger((LayerWork(1, 1, 1, 1, 1),), head=1))
    assert Dense().decide({}, torch.zeros(2, 3, 4), Site(0, "layer"), route).keep.all()
    assert Dense().loss(route) is None and Dense().bypass({}, torch.zeros(2, 3, 4), Site(0, "layer")) is None
