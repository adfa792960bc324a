"""Random numbers of a place: uniform, strictly inside (0, 1), and apart for other layers, rows, positions and units."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.core.cost import LayerWork, Ledger
from depthdial.core.decision import Site
from depthdial.core.draws import drawn, fading, uniform
from depthdial.core.route import Route

POSITIONS = torch.arange(20_000)[None]
ZERO = torch.zeros(1, 1, dtype=torch.long)


def draws(site: Site, seed: int = 0, sample: torch.Tensor | None = None, rows: int = 1) -> torch.Tensor:
    route = Route(Ledger((LayerWork(1, 1, 1, 1, 1),), head=1), positions=POSITIONS, sample=sample)
    return drawn(seed, site, torch.zeros(rows, POSITIONS.shape[1], 1), route)


def test_every_site_seed_and_row_draws_its_own_numbers():
    found = [
        draws(Site(0, "attn")),
        draws(Site(0, "mlp")),
        draws(Site(1, "attn")),
        draws(Site(1, "mlp")),
        draws(Site(0, "attn"), seed=1),
        draws(Site(0, "attn"), sample=torch.tensor([5])),
    ]
    for i, a in enumerate(found):
        for b in found[:i]:
            together = torch.corrcoef(torch.cat([a, b]))[0, 1]
            assert abs(float(together)) < 5 / math.sqrt(20_000)
    assert torch.equal(found[0], draws(Site(0, "layer"))), "attention stands for its layer"
    assert torch.equal(draws(Site(3, "mlp"), rows=2), draws(Site(3, "mlp")).expand(2, -1))


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


def test_fading_is_a_ramp_between_two_shares_of_training():
    assert [fading(p, 0.6, 0.85) for p in (0.0, 0.6, 0.725, 0.85, 1.0)] == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
