"""Dense: nothing is routed, and the route says so."""

from collections.abc import Callable
from typing import Any

import torch
from tests.methods.asking import tokens

from depthdial.core.method import Seen
from depthdial.core.tokens import Trace
from depthdial.methods import Dense
from depthdial.models.checkpoint import parts_of
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of


def test_the_model_is_the_base_and_every_layer_is_counted(tiny_model: Callable):
    ids = torch.arange(3, 13).view(2, 5)
    base, model = tiny_model("llama"), convert(tiny_model("llama"), Dense())
    converted = converted_of(model)
    route: Any = converted.route
    for offset in (0.0, -5.0):
        converted.set(offset=offset)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, base(ids).logits)
        assert torch.equal(route.layers_used, torch.full((2, 5), 6))
        assert route.cost() == 1.0 and torch.equal(route.token_cost(), torch.ones(2, 5))
    assert not converted.routed and not parts_of(model)
    assert converted.ledger.floor == 1.0


def test_asked_for_a_decision_it_keeps():
    trace, x = Trace(Dense().program(6)), torch.zeros(6, 4)
    assert Dense().decide({}, Seen(x), 0, tokens(2, 3), trace).keep.all()
    assert Dense().loss(tokens(2, 3), trace) is None and Dense().bypass({}, x, 0) is None
