"""Static: calibration picks what it must, layers are nested by the dial, and a dropped layer pays for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from depthdial.methods import Static, method_named


class FakeProbe:
    """A base of 5 layers with made-up figures: layer 3 alone hurts least; beside 3, layer 0 hurts less than 1."""

    depth = 5
    alone = (0.3, 0.2, 0.9, 0.1, 0.8)

    def __init__(self):
        self.asked: list[tuple[int, ...]] = []

    def block_influence(self) -> Sequence[float]:
        return [0.5, 0.1, 0.9, 0.2, 0.4]

    def divergence(self, dropped: Sequence[int]) -> float:
        self.asked.append(tuple(dropped))
        return sum(self.alone[layer] for layer in dropped) + (1.0 if {1, 3} <= set(dropped) else 0.0)

    def readouts(self, layers: Sequence[int], head_rows: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("not asked for here")


def test_greedy_adds_the_layer_that_costs_least_beside_those_dropped_before():
    probe, said = FakeProbe(), []
    chosen = Static(length=3, count=2).calibrate(probe, said.append)
    assert chosen == Static(order=(3, 0, 4), length=3, count=2)
    assert len(said) == 3 and "layer 3" in said[0]
    assert len(probe.asked) == 5 + 4 + 3
    assert all(trial[:1] == (3,) for trial in probe.asked[5:])


def test_block_influence_drops_what_changes_its_input_least():
    chosen = Static(selection="block_influence", length=4).calibrate(FakeProbe())
    assert chosen.order == (1, 3, 4, 0)


def test_an_order_that_is_given_is_kept():
    probe, given = FakeProbe(), Static(order=(2, 4))
    assert given.calibrate(probe) is given and not probe.asked


def test_one_layer_always_stays():
    for selection in ("greedy_kl", "block_influence"):
        assert len(method_named("static", {"selection": selection, "length": 14}).calibrate(FakeProbe()).order) == 4  # pyright: ignore


def test_the_dial_drops_one_layer_fewer_for_each_whole_step(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), Static(order=(3, 1, 4), count=2, adapter_ratio=4))
    ids = torch.arange(3, 8)[None]
    used = {}
    for offset in (-2.0, -1.0, -0.6, 0.0, 0.4, 0.6, 1.0, 2.0):
        model.converted.set(offset=offset)
        model(ids)
        kept = model.route.keep()[:, 0, :]
        assert (kept == kept[:, :1]).all(), "the same for every token"
        used[offset] = [i for i in range(6) if not kept[i, 0]]
    assert used == {
        -2.0: [1, 3, 4], -1.0: [1, 3, 4], -0.6: [1, 3, 4], 0.0: [1, 3], 0.4: [1, 3], 0.6: [3], 1.0: [3], 2.0: []
    }  # fmt: skip


def test_a_dropped_layer_pays_no_k_no_v_and_no_router(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), Static(order=(3, 1), count=1, adapter_ratio=0))
    model(torch.arange(3, 8)[None])
    layer, dense = model.converted.ledger.layers[3], model.converted.ledger.dense
    assert layer.total == sum(p.numel() for p in model.model.layers[2].parameters() if p.ndim == 2)
    assert model.route.cost() == pytest.approx(1 - layer.total / dense)
    adapter = adapted(tiny_model("llama"), Static(order=(3, 1), count=1, adapter_ratio=4))
    adapter(torch.arange(3, 8)[None])
    route: Any = adapter.route
    assert route.cost() == pytest.approx(1 - (layer.total - 3 * 32 * 16) / dense)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"selection": "best"}, "selection must be"), ({"order": (1, 2, 1)}, "names a layer twice")],
)
def test_bad_fields_are_refused(fields: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        Static(**fields)


@pytest.mark.parametrize("order", [(6,), (-1,)])
def test_layers_that_the_model_lacks_are_refused(order: tuple[int, ...]):
    with pytest.raises(ValueError, match="does not fit a model of 6 layers"):
        Static(order=order).program(6)


def test_json_gives_lists():
    assert method_named("static", {"order": [2, 1]}) == Static(order=(2, 1))
