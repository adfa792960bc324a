"""Random skipping: its rate is met, its draws belong to (seed, layer, position, token or row) and to nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.methods.asking import ask
from tests.methods.asking import tokens as tokens_of
from torch import Tensor

from depthdial.core.method import Dims
from depthdial.core.program import Step
from depthdial.core.tokens import Trace
from depthdial.methods import Random

LENGTH, DEPTH = 20_000, 18


def keep(method: Random, layer: int = 0, offset: float | Tensor = 0.0, key: Tensor | None = None, rows: int = 1):
    """bool [rows, 20000]: what the attention of `layer` decides."""
    x = torch.zeros(rows, LENGTH, 1)
    return ask(replace(method, first=0), {}, x, (layer, "attn"), DEPTH, offset=offset, key=key).keep


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
        keep(Random(rate=0.5), key=torch.tensor([5])),
        keep(Random(rate=0.5)).roll(1, dims=1),
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert close(a == b, 0.5, 20_000), "independent draws agree half of the time"


def test_a_row_draws_the_same_alone_and_in_company():
    method = Random(rate=0.5)
    samples = torch.tensor([7, 1_999_999_999, 3])
    together = keep(method, key=samples, rows=3)
    for i in range(3):
        assert torch.equal(keep(method, key=samples[i : i + 1]), together[i : i + 1])
    assert torch.equal(keep(method, rows=3), keep(method).expand(3, -1)), "in inference rows have no key"


def tokens(rows: int) -> Tensor:
    return torch.randint(50_000, (rows, LENGTH), generator=torch.Generator().manual_seed(rows))


def of_text(ids: Tensor, start: int = 0) -> Tensor:
    """bool [B, T] for texts at inference, or for what of them begins at place `start`."""
    of = tokens_of(*ids.shape, ids=ids)
    of = replace(of, position=of.position + start)
    return ask(Random(rate=0.5, first=0), {}, torch.zeros(*ids.shape, 1), of=of).keep


def test_other_texts_draw_other_coins_and_pieces_of_one_the_same():
    ids = tokens(3)
    found = of_text(ids)
    for i in range(3):
        assert close(found[i], 0.5, 20_000)
        for other in found[:i]:
            assert close(found[i] == other, 0.5, 20_000), "an interval over texts sees the coins, too"
    assert torch.equal(found[1:2, 700:], of_text(ids[1:2, 700:], 700)), "however a text is cut"
    prefix = torch.cat([ids[:1, :500], ids[1:2, 500:]], 1)
    assert torch.equal(of_text(prefix)[:, :500], found[:1, :500]), "K and V of one beginning can be shared"


def test_all_layers_at_once_are_what_each_layer_says():
    method, ids = Random(rate=0.6, first=1, but=(2,)), tokens(2)[:, :50]
    for offset in (0.3, torch.tensor([-1.0, math.inf])):
        of, program = tokens_of(2, 50, ids=ids, offset=offset), method.program(4)
        each = [ask(method, {}, torch.zeros(2, 50, 1), (i, "attn"), 4, of=of).keep.view(-1) for i in (1, 3)]
        assert torch.equal(method.keeps(program, of), torch.stack(each))


def test_lowering_the_dial_only_takes_away():
    method, offsets = Random(rate=0.6), torch.tensor([2.0, 0.5, 0.0, -1.0])
    rows = keep(method, offset=offsets, rows=4)
    assert all((above | ~below).all() for above, below in pairwise(rows))
    assert not (rows[0] == rows[3]).all()


def test_attention_and_mlp_are_skipped_together():
    method = Random(rate=0.5)
    trace, x = Trace(method.program(6)), torch.zeros(1, 20, 1)
    ask(method, {}, x, (3, "attn"), trace=trace)
    ask(method, {}, x, (3, "mlp"), trace=trace)
    attn, mlp = trace.decisions.values()
    assert mlp is attn


def test_adapters_are_optional():
    dims = Dims(8, 32)
    assert set(Random().parts(Step(0, "mlp"), dims)) == {"adapter"}
    assert Random().parts(Step(0, "attn"), dims) == {}
    assert Random(adapter_ratio=0).parts(Step(0, "mlp"), dims) == {}
    assert Random(adapter_ratio=0).bypass({}, torch.zeros(1, 8), 1) is None


@pytest.mark.parametrize("fields", [{"rate": 0.0}, {"rate": 1.0}, {"rate": -0.5}, {"rate": float("nan")}])
def test_bad_rates_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError, match="rate must lie between 0 and 1"):
        Random(**fields)
