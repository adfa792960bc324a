"""The least time of a pass, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_work import LEDGER, SIZES, priced, tokens

from depthdial.core.cost import LayerWork
from depthdial.core.work import Path, Sizes, work
from depthdial.evaluate.speed.ideal import bound, dense_bytes, ideal_speedup, least, seconds
from depthdial.evaluate.speed.limits import MachineLimits


def test_the_larger_time_is_the_limit():
    pass_ = tokens([[1, 1], [1, 0]])
    assert least(work(LEDGER, pass_, SIZES), MachineLimits(516, 1e9)) == 1.0
    assert least(work(LEDGER, pass_, SIZES), MachineLimits(1e9, 435)) == 1.0
    assert bound(work(LEDGER, pass_, SIZES), MachineLimits(516, 1e9)) == "reading"
    assert bound(work(LEDGER, pass_, SIZES), MachineLimits(1e9, 435)) == "arithmetic"
    assert seconds(LEDGER, [pass_] * 3, SIZES, MachineLimits(516, 1e9)) == 3.0


def test_dense_bytes_are_those_of_all_weights():
    assert dense_bytes(LEDGER, SIZES) == 2 * (100 + 2 * 20)


def test_ideal_at_batch_1_is_the_inverse_cost_of_the_weights():
    """Beside the cache and the embedding: here none is read."""
    layer = LayerWork(kv=4, attn=6, mlp=10, attend=0, kv_width=0)
    ledger = priced(layer)
    pass_ = tokens([[1], [0]], (3,), (0,), logits=1)
    cost = (140 + 3 - 16 + 5) / 140
    ideal = ideal_speedup(ledger, [pass_], Sizes(2, 2, 2, 0), MachineLimits(1.0, 1e9))
    assert ideal == pytest.approx(1 / cost)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_more_layers_are_never_less_work(rows):
    keep = torch.tensor(rows).T
    places = torch.arange(len(rows))
    some = Path(keep, torch.ones_like(keep), (places + 1).expand_as(keep), places, places, len(rows))
    limits = MachineLimits(1.0, 1.0)
    for index in range(2):
        more = keep.clone()
        more[index] = True
        fuller = replace(some, ran=more)
        assert work(LEDGER, fuller, SIZES).macs >= work(LEDGER, some, SIZES).macs
    assert ideal_speedup(LEDGER, [some], SIZES, limits) > 0
