"""Health tells routers that decide from those that always say the same."""

from __future__ import annotations

import math

import pytest
import torch

from depthdial.core.layers import Router
from depthdial.methods import Random, Static
from depthdial.models.calibration import Heldout
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from heldout.routers import RouteRecord, RouterHealth
from heldout.text import HeldoutText, PluginRun


def health_of(model, batches, offset: float = 0.0) -> RouterHealth:
    heldout = Heldout(model, batches)
    kinds = {"odd": [b["input_ids"] % 2 == 1 for b in batches]}
    text = HeldoutText(batches, heldout.teacher, heldout.head, kinds)
    record = RouteRecord(heldout.converted, batches)
    scores = text.score(PluginRun(heldout), offset, record.record)
    return record.health(scores.layers, text.groups)


def test_routers_that_decide(tiny_model, adaptive, packed_batches):
    model, batches = adaptive(tiny_model("llama"), weights="hard"), packed_batches()
    health = health_of(model, batches)
    assert [layer.layer for layer in health.layers] == [2, 3, 4, 5]
    assert not health.static and health.minority > 0.05 and health.skips_by_token > 0
    assert 2 <= health.used_low <= health.used_mean <= health.used_high <= 6
    assert health.used_mean == pytest.approx(2 + sum(layer.run_rate for layer in health.layers))
    for layer in health.layers:
        assert layer.minority == min(layer.run_rate, 1 - layer.run_rate)
        assert layer.score_std > 0 and set(layer.by_group) == {"odd"}
    assert 0 < health.bits <= 4
    assert health.alone_std == pytest.approx(math.sqrt(sum(x.run_rate * (1 - x.run_rate) for x in health.layers)))


def test_routers_that_always_say_the_same(tiny_model, adaptive, packed_batches):
    model = adaptive(tiny_model("llama"), weights="hard")
    program = converted_of(model).program
    for s, unit in converted_of(model).routed.items():
        for part in unit.parts.values():
            if isinstance(part, Router):
                part.head.weight.data.zero_()
                part.bias.data.fill_(5.0 if program.steps[s].block % 2 else -5.0)
    health = health_of(model, packed_batches())
    assert health.static and health.static_layers == [2, 3, 4, 5]
    assert [layer.run_rate for layer in health.layers] == [0.0, 1.0, 0.0, 1.0]
    assert (health.minority, health.skips_by_token, health.bits, health.used_std) == (0.0, 0.0, 0.0, 0.0)


def test_baselines(tiny_model, packed_batches):
    batches = packed_batches(6)
    static = health_of(convert(tiny_model("llama"), Static(order=(4, 2), count=1)), batches)
    assert static.static and math.isnan(static.layers[0].score_std)
    random = health_of(convert(tiny_model("llama"), Random(first=2, rate=0.5)), batches)
    assert not random.static and random.layers[0].score_std == pytest.approx(0, abs=1e-6)


def test_nothing_routed():
    with pytest.raises(ValueError, match="routes no layer"):
        RouteRecord(None, []).health(torch.zeros(3), {})  # pyright: ignore[reportArgumentType]
