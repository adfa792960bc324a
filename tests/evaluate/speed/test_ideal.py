"""Least work of a pass, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.core.cost import LayerWork, Ledger
from depthdial.core.decision import Site
from depthdial.evaluate.speed.ideal import Sizes, Tokens, dense_bytes, ideal_speedup, seconds, work
from depthdial.evaluate.speed.limits import Limits

SIZES = Sizes(weight=2, part=2, cache=4, hidden=7)
LAYER = LayerWork(kv=4, attn=6, mlp=10, attend=8, kv_width=2)
LEDGER = Ledger((LAYER, LAYER), head=100, always={Site(1, "attn"): 3, Site(1, "mlp"): 0}, skipped={Site(1, "mlp"): 5})


def tokens(keep, positions=(4, 9), texts=(0, 1), logits=2, decided=True) -> Tokens:
    return Tokens(torch.tensor(keep, dtype=torch.bool), torch.tensor(positions), torch.tensor(texts), logits, decided)


def test_two_texts_decode_and_one_skips():
    found = work(LEDGER, tokens([[1, 1], [1, 0]]), SIZES)
    embedding, head = 2 * 7 * 2, 100 * 2
    first = 2 * (4 + 6 + 10) + (5 + 10 + 2) * 2 * 4
    second = 2 * (4 + 6 + 10) + (5 + 2) * 2 * 4 + 2 * (3 + 5)
    assert found.read == embedding + head + first + second == 516
    assert found.macs == 200 + (2 * 20 + 15 * 8) + (2 * 4 + 16 + 5 * 8) + (2 * 3 + 5) == 435


def test_a_layer_that_all_skip_is_not_read():
    found = work(LEDGER, tokens([[1, 1], [0, 0]]), SIZES)
    assert found.read == 28 + 200 + (40 + 136) + (2 * 4 + 2 * 2 * 4 + 2 * (3 + 5))
    assert found.macs == 200 + (40 + 120) + 2 * 4 + 2 * (3 + 5)


def test_the_base_has_no_router_and_a_layer_that_all_keep_reads_no_adapter():
    kept = work(LEDGER, tokens([[1, 1], [1, 1]]), SIZES)
    base = work(LEDGER, tokens([[1, 1], [1, 1]]).dense(), SIZES)
    assert kept.read - base.read == 2 * 3 and kept.macs - base.macs == 2 * 3


def test_nobody_asks_for_k_and_v_where_the_method_says_so():
    ledger = Ledger((LAYER,), head=100, projects_kv=False)
    found = work(ledger, tokens([[0, 0]]), SIZES)
    assert found == (28 + 200, 200)


def test_the_tokens_of_a_prompt_share_the_cache_and_one_gets_logits():
    found = work(LEDGER, tokens([[1, 1, 1]] * 2, (0, 1, 2), (0, 0, 0), logits=1, decided=False), SIZES)
    assert found.read == 3 * 14 + 200 + 2 * (40 + (3 + 3) * 8)
    assert found.macs == 100 + 2 * (3 * 20 + (1 + 2 + 3) * 8)


def test_a_window_limits_what_is_seen():
    layer = LayerWork(kv=4, attn=6, mlp=10, attend=8, kv_width=2, window=3)
    found = work(Ledger((layer,), head=0), tokens([[1, 1]], decided=False), SIZES)
    assert found.macs == 2 * 20 + 6 * 8 and found.read == 28 + 40 + (6 + 2) * 8


def test_the_larger_time_is_the_limit():
    pass_ = tokens([[1, 1], [1, 0]])
    assert work(LEDGER, pass_, SIZES).seconds(Limits(516, 1e9)) == 1.0
    assert work(LEDGER, pass_, SIZES).seconds(Limits(1e9, 435)) == 1.0
    assert work(LEDGER, pass_, SIZES).bound(Limits(516, 1e9)) == "reading"
    assert work(LEDGER, pass_, SIZES).bound(Limits(1e9, 435)) == "arithmetic"
    assert seconds(LEDGER, [pass_] * 3, SIZES, Limits(516, 1e9)) == 3.0


def test_dense_bytes_are_those_of_all_weights():
    assert dense_bytes(LEDGER, SIZES) == 2 * (100 + 2 * 20)


def test_ideal_at_batch_1_is_the_inverse_cost_of_the_weights():
    """Beside the cache and the embedding: here none is read."""
    layer = LayerWork(kv=4, attn=6, mlp=10, attend=0, kv_width=0)
    ledger = Ledger((layer, layer), 100, always={Site(1, "attn"): 3}, skipped={Site(1, "mlp"): 5})
    pass_ = tokens([[1], [0]], (3,), (0,), logits=1)
    cost = (140 + 3 - 16 + 5) / 140
    ideal = ideal_speedup(ledger, [pass_], Sizes(2, 2, 2, 0), Limits(1.0, 1e9))
    assert ideal == pytest.approx(1 / cost)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_more_layers_are_never_less_work(rows):
    keep = torch.tensor(rows).T
    some = Tokens(keep, torch.arange(len(rows)), torch.arange(len(rows)), len(rows))
    limits = Limits(1.0, 1.0)
    for index in range(2):
        more = keep.clone()
        more[index] = True
        fuller = Tokens(more, some.positions, some.texts, some.logits)
        assert work(LEDGER, fuller, SIZES).macs >= work(LEDGER, some, SIZES).macs
    assert ideal_speedup(LEDGER, [some], SIZES, limits) > 0
