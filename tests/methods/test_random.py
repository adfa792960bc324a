"""Random skipping: its rate is met, its draws belong to (seed, layer, sample, position) and to nothing else."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from depthdial.core.cost import LayerWork, Ledger
from depthdial.core.decision import Site
from depthdial.core.method import Dims
from depthdial.core.route import Route
from depthdial.methods import Random
from depthdial.methods.random import uniform

POSITIONS = torch.arange(20_000)[None]
ZERO = torch.zeros(1, 1, dtype=torch.long)


def keep(method: Random, layer: int = 0, offset: float | Tensor = 0.0, sample: Tensor | None = None, rows: int = 1):
    """bool [rows, 20000]: what the attention site of `layer` decides."""
    route = Route(Ledger((LayerWork(1, 1, 1, 1, 1),), head=1), offset, positions=POSITIONS, sample=sample)
    x = torch.zeros(rows, POSITIONS.shape[1], 1)
    return method.decide({}, x, Site(layer, "attn"), route).keep


def close(share: Tensor, rate: float, count: int) -> bool:
    """Within five standard deviations of a binomial draw."""
    return abs(float(share.float().mean()) - rate) < 5 * math.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("seed", [0, 12345])
def test_rate_is_met_at_every_layer_and_by_the_dial(rate: float, seed: int):
    method = Random(rate=rate, seed=seed)
    for layer in (0, 1, 17):
        assert close(keep(method, layer), rate, 20_000)
    moved = 1 / (1 + math.exp(-(math.log(rate / (1 - rate)) + 0.7)))
    assert close(keep(method, offset=0.7), moved, 20_000)


def test_layers_seeds_samples_and_positions_draw_apart():
    draws = [
        keep(Random(rate=0.5)),
        keep(Random(rate=0.5), layer=1),
        keep(Random(rate=0.5, seed=1)),
        keep(Random(rate=0.5), sample=torch.tensor([5])),
        keep(Random(rate=0.5)).roll(1, dims=1),
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert close(a == b, 0.5, 20_000), "independent draws agree half of the time"


def test_a_row_draws_the_same_alone_and_in_company():
    method = Random(rate=0.5)
    samples = torch.tensor([7, 1_999_999_999, 3])
    together = keep(method, sample=samples, rows=3)
    for i in range(3):
        assert torch.equal(keep(method, sample=samples[i : i + 1]), together[i : i + 1])
    assert torch.equal(keep(method, rows=3), keep(method).expand(3, -1)), "in inference rows have no key"


def test_lowering_the_dial_only_takes_away():
    method, offsets = Random(rate=0.6), torch.tensor([2.0, 0.5, 0.0, -1.0])
    rows = keep(method, offset=offsets, rows=4)
    assert all((above | ~below).all() for above, below in pairwise(rows))
    assert not (rows[0] == rows[3]).all()


@given(st.integers(0, 2**31 - 1), st.integers(0, 200), st.integers(0, 2**31 - 1), st.integers(0, 2**20))
def test_uniform_lies_strictly_between_zero_and_one(seed: int, layer: int, sample: int, position: int):
    draw = uniform(seed, layer, torch.tensor([[sample]]), torch.tensor([[position]]))
    assert draw.shape == (1, 1) and 0 < float(draw) < 1


@pytest.mark.parametrize("last", [0, 1, 2**31 - 1, 2**31 - 64])
def test_uniform_stays_inside_at_the_ends_of_its_hash(last: int):
    """The position whose hash ends in `last`, found by undoing the hash: a draw of 1 would be skipped at any rate."""
    mask, key = 2**31 - 1, last
    key = key ^ (key >> 16)
    for factor in (0x27D4EB2D, 0x119DE1F3, 0x45D9F3B):
        key = key * pow(factor, -1, 2**31) & mask
        key = key ^ (key >> 15) ^ (key >> 30)
    position = key * pow(0x2C1B3C6D, -1, 2**31) & mask
    draw = uniform(0, 0, ZERO, torch.tensor([[position]]))
    assert abs(float(draw) - (last + 0.5) / 2**31) < 1e-6, "the hash was undone"
    assert 0 < float(draw) < 1


def test_uniform_is_uniform():
    draws = uniform(3, 4, ZERO, POSITIONS).double()
    tenths = torch.histc(draws, 10, 0, 1) / 20_000
    assert (tenths - 0.1).abs().max() < 0.011
    assert abs(float(draws.mean()) - 0.5) < 0.01


def test_attention_and_mlp_are_skipped_together():
    method = Random(rate=0.5)
    route = Route(Ledger((LayerWork(1, 1, 1, 1, 1),), head=1), positions=POSITIONS)
    x = torch.zeros(1, 20_000, 1)
    attn = route.decisions[Site(0, "attn")] = method.decide({}, x, Site(0, "attn"), route)
    assert method.decide({}, x, Site(0, "mlp"), route) is attn


def test_adapters_are_optional():
    dims = Dims(8, 32)
    assert set(Random().parts(Site(0, "mlp"), dims)) == {"adapter"}
    assert Random().parts(Site(0, "attn"), dims) == {}
    assert Random(adapter_ratio=0).parts(Site(0, "mlp"), dims) == {}
    assert Random(adapter_ratio=0).bypass({}, torch.zeros(1, 1, 8), Site(0, "mlp")) is None


@pytest.mark.parametrize("fields", [{"rate": 0.0}, {"rate": 1.0}, {"rate": -0.5}, {"rate": float("nan")}])
def test_bad_rates_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError, match="rate must lie between 0 and 1"):
        Random(**fields)
