"""D3 against the forward written by hand: later tokens of an answer run fewer layers, and nobody misses a key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from depthdial.core.program import Program
from depthdial.core.tokens import Tokens
from depthdial.methods import D3, method_named
from depthdial.models.checkpoint import Plugin, attach, save
from depthdial.models.convert import convert
from depthdial.models.fingerprint import fingerprint

IDS = torch.randint(3, 300, (2, 16), generator=torch.Generator().manual_seed(0))
METHOD = D3(alpha=0.9, start=2, first=1, last=1)
PROMPTS = torch.tensor([5, 3])
ORDER = [2, 3, 1, 4]
"""Of six layers with a core of one and one: the middle first."""


def depth_of(place: int) -> int:
    """Layers of the token at a place of the answer, the core apart."""
    return 6 if place < 2 else max(2, math.floor(6 * 0.9 ** (place - 2)))


def by_hand(model: Any, row: Tensor, prompt: int) -> tuple[Tensor, list[list[int]]]:
    """Logits [T, V] of one row of a stock Llama, and which tokens ran each layer. They run as a shorter sequence."""
    x, places = model.model.embed_tokens(row), torch.arange(len(row))
    runs = []
    for i, layer in enumerate(model.model.layers):
        dropped_before = ORDER.index(i) if i in ORDER else 6
        run = [t for t in range(len(row)) if t < prompt or dropped_before >= 6 - depth_of(t - prompt)]
        rope = model.model.rotary_emb(x[None], position_ids=places[run][None])  # positions stay as they are
        block = layer(x[run][None], position_embeddings=rope, position_ids=places[run][None])[0]
        x = x.index_put((torch.tensor(run),), block)
        runs.append(run)
    return model.lm_head(model.model.norm(x)), runs


@torch.no_grad()
def test_forward_is_the_papers(tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), METHOD)
    stock = tiny_model("llama")
    converted = model.converted
    with converted.using(prompt=PROMPTS):
        logits = model(IDS).logits
    kept = converted.route.keep()
    for row, prompt in enumerate(PROMPTS.tolist()):
        expected, runs = by_hand(stock, IDS[row], prompt)
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)
        assert [kept[i, row].nonzero()[:, 0].tolist() for i in range(6)] == runs
        assert sorted({len(run) for run in runs})[0] < 16, "something was dropped"
        # the sets are nested: of a row, those that run a layer are its first tokens, so that none of them misses a key
        assert all(run == list(range(len(run))) for run in runs)


@torch.no_grad()
def test_what_is_written_gets_shallower(tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), METHOD)
    stock = tiny_model("llama")
    ids, used = IDS[:1, :5], []
    model.get_decoder().register_forward_hook(lambda *_: used.append(model.route.layers_used[0].tolist()))
    for _ in range(12):
        ids = torch.cat([ids, by_hand(stock, ids[0], 5)[0][-1].argmax()[None, None]], 1)
    assert torch.equal(model.generate(IDS[:1, :5], max_new_tokens=12, do_sample=False, eos_token_id=None), ids)
    assert used == [[6] * 5] + [[depth_of(place)] for place in range(11)], "the prompt runs fully, the answer decays"
    assert used[-1] == [2], "down to the core"


def test_without_decay_it_is_the_base(tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), D3(alpha=1.0))
    stock = tiny_model("llama")
    assert torch.equal(model(IDS).logits, stock(IDS).logits) and model.route.cost() == 1.0


def depths(method: D3, places: int, offset: float = 0.0) -> Tensor:
    """Layers of each token of an answer after a prompt of 3, int64 [places], in a model of 30."""
    program = method.program(30)
    position = torch.arange(places) + 3
    tokens = Tokens(torch.full((places,), offset), position, prompt=torch.full((places,), 3))
    return method.keeps(program, tokens).sum(0) + 30 - len(program.routed)


def test_the_dial_is_in_layers():
    middle = depths(D3(alpha=0.99), 60)
    assert middle[0] == 30 and middle[-1] == math.floor(30 * 0.99**59)
    assert torch.equal(depths(D3(alpha=0.99), 60, offset=2.0), (middle + 2).clamp(max=30))
    assert torch.equal(depths(D3(alpha=0.99), 60, offset=-14.0), (middle - 14).clamp(min=4))
    assert (depths(D3(alpha=0.99), 60, offset=math.inf) == 30).all()


def test_the_controls_have_the_same_mean_depth():
    own = depths(D3(alpha=0.99, start=10, length=80), 80)
    reversed_ = depths(D3(alpha=0.99, start=10, length=80, schedule="reversed"), 80)
    constant = depths(D3(alpha=0.99, start=10, length=80, schedule="constant"), 80)
    assert own[0] > own[-1] and torch.equal(reversed_, own.flip(0))
    assert (constant == own.float().mean().round()).all()


@torch.no_grad()
def test_what_the_reversed_schedule_drops_leaves_keys(tiny_model: Callable):
    """As later tokens ask for them: the forward differs from one without them, and pays for them."""
    method = D3(alpha=0.8, first=1, last=1, length=12, schedule="reversed")
    assert all(step.absent == "project" for step in method.program(6).steps)
    assert all(step.absent == "nothing" for step in METHOD.program(6).steps if step.routed != "no")
    model: Any = convert(tiny_model("llama"), method)
    model(IDS[:, :12])
    used, layer = model.route.layers_used[0], model.converted.ledger.layers[0]
    assert used.tolist() == sorted(used.tolist()) and used[0] == 2 and used[-1] == 6
    head = model.converted.ledger.head
    expected = (2 * layer.total + 4 * layer.kv + head) / model.converted.ledger.dense
    assert float(model.route.token_cost()[0, 0]) == pytest.approx(expected)


class FakeProbe:
    """A base of 6 layers with made-up influences."""

    depth = 6

    def block_influence(self) -> Sequence[float]:
        return [0.1, 0.5, 0.9, 0.2, 0.4, 0.0]

    def divergence(self, dropped: Sequence[int]) -> float:
        raise AssertionError

    def readouts(self, layers: Sequence[int], head_rows: int | None) -> tuple[Tensor, Tensor]:
        raise AssertionError


def test_the_middle_goes_first_or_what_changes_least():
    def order(method: D3) -> list[int]:
        program: Program = method.program(6)
        places = torch.arange(40)
        ran = method.keeps(program, Tokens(torch.zeros(40), places)).sum(-1)
        return [program.steps[s].block for s in sorted(program.routed, key=lambda s: int(ran[program.routed.index(s)]))]

    assert order(METHOD) == ORDER
    chosen = D3(alpha=0.9, first=1, last=1, dropping="block_influence").calibrate(FakeProbe())
    assert order(chosen) == [3, 4, 1, 2] == list(chosen.order), "the core stays"
    assert METHOD.calibrate(FakeProbe()) == METHOD


def test_saved_and_loaded_it_is_the_same(tiny_model: Callable, tmp_path: Path):
    model: Any = convert(tiny_model("llama"), METHOD)
    stock = tiny_model("llama")
    save(model, tmp_path / "d3", Plugin("d3", METHOD, fingerprint(stock)))
    again: Any = attach(tiny_model("llama"), tmp_path / "d3")
    assert again.converted.method == METHOD and torch.equal(again(IDS).logits, model(IDS).logits)


def test_an_order_that_is_not_known_does_not_run(tiny_model: Callable):
    with pytest.raises(ValueError, match="order of dropping is not known yet: calibrate"):
        convert(tiny_model("llama"), D3(first=1, last=1, dropping="block_influence"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"alpha": 1.01}, "alpha must be above 0"),
        ({"dropping": "top"}, "dropping must be"),
        ({"schedule": "random"}, "schedule must be"),
        ({"start": -1}, "must not be below 0"),
        ({"length": 0}, "at least 1"),
        ({"order": [2, 2]}, "names a layer twice"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        method_named("d3", fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"first": 3, "last": 3}, "leaves none of 6 to drop"), ({"order": (2, 3, 4)}, "is not one of layers 2 to 3")],
)
def test_cores_and_orders_that_do_not_fit_are_refused(fields: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        D3(**fields).program(6)
