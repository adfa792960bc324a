"""Random skipping: its rate is met, its draws belong to (seed, layer, position, token or row) and to nothing else."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from depthdial.core.cost import LayerWork, Ledger
from depthdial.core.decision import Site
from depthdial.core.method import Dims
from depthdial.core.route import Route
from depthdial.methods import Random

POSITIONS = torch.arange(20_000)[None]


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


def tokens(rows: int) -> Tensor:
    return torch.randint(50_000, (rows, POSITIONS.shape[1]), generator=torch.Generator().manual_seed(rows))


def of_text(ids: Tensor, places: Tensor, layer: int = 0) -> Tensor:
    """bool [B, T] for texts at inference."""
    route = Route(Ledger((LayerWork(1, 1, 1, 1, 1),), head=1), positions=places, tokens=ids)
    return Random(rate=0.5).decide({}, torch.zeros(*ids.shape, 1), Site(layer, "attn"), route).keep


def test_other_texts_draw_other_coins_and_pieces_of_one_the_same():
    ids = tokens(3)
    found = of_text(ids, POSITIONS)
    for i in range(3):
        assert close(found[i], 0.5, 20_000)
        for other in found[:i]:
            assert close(found[i] == other, 0.5, 20_000), "an interval over texts sees the coins, too"
    assert torch.equal(found[1:2, 700:], of_text(ids[1:2, 700:], POSITIONS[:, 700:])), "however a text is cut"
    prefix = torch.cat([ids[:1, :500], ids[1:2, 500:]], 1)
    assert torch.equal(of_text(prefix, POSITIONS)[:, :500], found[:1, :500]), "K and V of one beginning can be shared"


def test_all_layers_at_once_are_what_each_layer_says():
    method, ids = Random(rate=0.6), tokens(2)[:, :50]
    for offset in (0.3, torch.tensor([-1.0, math.inf])):
        route = Route(Ledger((LayerWork(1, 1, 1, 1, 1),) * 4, head=1), offset, positions=POSITIONS[:, :50], tokens=ids)
        each = [method.decide({}, torch.zeros(2, 50, 1), Site(i, "attn"), route).keep for i in (1, 3)]
        assert torch.equal(method.keeps([1, 3], route), torch.stack(each))


def test_lowering_the_dial_only_takes_away():
    method, offsets = Random(rate=0.6), torch.tensor([2.0, 0.5, 0.0, -1.0])
    rows = keep(method, offset=offsets, rows=4)
    assert all((above | ~below).all() for above, below in pairwise(rows))
    assert not (rows[0] == rows[3]).all()


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
