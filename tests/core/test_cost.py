"""What a route costs, by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthdial.core.cost import LayerWork, Ledger, attention_macs, kv_bytes_read, token_cost
from depthdial.core.decision import Decision, Site

PLAIN = LayerWork(kv=20, attn=30, mlp=50, attend=8, kv_width=6)
SLIDING = LayerWork(kv=2, attn=3, mlp=5, attend=4, kv_width=2, window=3)
ATTN, MLP = Site(1, "attn"), Site(1, "mlp")
LEDGER = Ledger((SLIDING, PLAIN), head=90, always={ATTN: 7, MLP: 0}, skipped={MLP: 4})
"""Dense: 10 + 100 + 90 = 200. A skip of layer 1 leaves out 30 (K and V are still paid for) and 50, and adds 4."""


def keep(*rows: list[int]) -> Decision:
    return Decision.hard(torch.tensor(rows, dtype=torch.bool))


def test_prices():
    assert LEDGER.dense == 200
    assert [LEDGER.kept(s) for s in (ATTN, MLP, Site(1, "layer"))] == [50, 50, 100]
    assert [LEDGER.passed(s) for s in (ATTN, MLP, Site(1, "layer"))] == [20, 4, 20]
    assert [LEDGER.saved(s) for s in (ATTN, MLP, Site(1, "layer"))] == [30, 46, 80]
    bare = Ledger((SLIDING, PLAIN), head=90, projects_kv=False)
    assert [bare.saved(s) for s in (ATTN, MLP, Site(0, "layer"))] == [50, 50, 10]


def test_floor_skips_what_saves_something():
    assert LEDGER.floor == (200 + 7 - 30 - 46) / 200
    dear = Ledger((PLAIN,), head=0, skipped={Site(0, "mlp"): 70})  # an adapter larger than its MLP
    assert dear.saved(Site(0, "mlp")) == -20 and dear.floor == 1.0


def test_expected_cost_lies_between_floor_and_everything():
    assert LEDGER.expected(1.0) == 207 and LEDGER.expected(0.0) == 207 - 30 - 46
    assert LEDGER.expected(0.25) == 207 - 0.75 * 76
    soft = Ledger((PLAIN,), head=0, always={Site(0, "layer"): 5}, skips=False)
    assert soft.floor == 1.05, "what always runs is never saved"


def test_token_cost():
    decision = keep([1, 0], [0, 1])
    cost = token_cost(LEDGER, {ATTN: decision, MLP: decision}, 0.0, (2, 2))
    torch.testing.assert_close(cost, torch.tensor([[207, 131], [131, 207]]) / 200)
    assert cost.dtype == torch.float32
    only_mlp = token_cost(LEDGER, {ATTN: keep([1, 1]), MLP: keep([1, 0])}, 0.0, (1, 2))
    torch.testing.assert_close(only_mlp, torch.tensor([[207, 161]]) / 200)
    assert torch.equal(token_cost(LEDGER, {}, 0.0, (2, 3)), torch.ones(2, 3)), "no site, no saving"


def test_cost_is_where_the_tokens_are():
    """Also where nothing is decided, as in a dense model."""
    assert token_cost(LEDGER, {}, 0.0, (2, 3), torch.device("meta")).device.type == "meta"


def test_rows_at_inf_run_the_base():
    decision = keep([1, 1], [1, 0])
    sites = {ATTN: decision, MLP: decision}
    assert torch.equal(token_cost(LEDGER, sites, math.inf, (2, 2)), torch.ones(2, 2))
    cost = token_cost(LEDGER, sites, torch.tensor([math.inf, 0.0]), (2, 2))
    torch.testing.assert_close(cost, torch.tensor([[200, 200], [207, 131]]) / 200)


def test_costs_near_one_are_told_apart_on_large_models():
    layer = LayerWork(kv=10**9, attn=10**9, mlp=6 * 10**9, attend=1, kv_width=1)
    ledger = Ledger((layer,) * 8, head=10**9, always={Site(0, "mlp"): 0}, skipped={Site(0, "mlp"): 0})
    cost = token_cost(ledger, {Site(0, "mlp"): keep([0])}, 0.0, (1, 1))
    assert float(cost) == pytest.approx(59 / 65, abs=1e-7)


@given(st.integers(0, 40), st.integers(1, 12))
def test_attention_counts_the_keys_a_causal_mask_lets_through(position: int, window: int):
    layers = (LayerWork(0, 0, 0, attend=8, kv_width=6), LayerWork(0, 0, 0, attend=4, kv_width=2, window=window))
    ledger = Ledger(layers, head=1)
    every, near = position + 1, sum(1 for key in range(position + 1) if key > position - window)
    at = torch.tensor([[position]])
    both, none, second = (torch.tensor(k)[:, None, None].bool() for k in ([1, 1], [0, 0], [0, 1]))
    assert attention_macs(ledger, both, at).item() == 8 * every + 4 * near
    assert attention_macs(ledger, second, at).item() == 4 * near
    assert attention_macs(ledger, none, at).item() == 0
    assert kv_bytes_read(ledger, both, at, itemsize=2).item() == 2 * (6 * every + 2 * near)


def test_attention_by_token():
    kept = torch.tensor([[[1, 1, 1, 1]], [[1, 0, 1, 1]]]).bool()
    positions = torch.tensor([[0, 1, 2, 3]])
    macs = attention_macs(Ledger((SLIDING, PLAIN), head=1), kept, positions)
    assert macs.tolist() == [[4 * 1 + 8 * 1, 4 * 2, 4 * 3 + 8 * 3, 4 * 3 + 8 * 4]]
    assert macs.dtype == torch.int64
    read = kv_bytes_read(Ledger((SLIDING, PLAIN), head=1), kept, positions, 4)
    assert read.tolist() == [[4 * (2 + 6), 4 * 4, 4 * (6 + 18), 4 * (6 + 24)]]
