"""K and V to their pages, and a layer's decision with its lists."""

from __future__ import annotations

import pytest
import torch
from tests.kernels import definition

from depthdial.kernels.tensors import Act, Branch, Dense, Norm, RouterTensors
from depthdial.kernels.triton.gate import gate_of
from depthdial.kernels.triton.route import Choice, route
from depthdial.kernels.triton.rows import Split

TOKENS = [(0, 3), (1, 70), (2, 0), (0, 4), (1, 71), (1, 5)]
INF = float("inf")


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("dtype", "heads", "head_dim"), [(torch.float32, 3, 8), (torch.bfloat16, 2, 24)])
def test_k_and_v_are_written_as_the_reference_writes_them(dtype, heads, head_dim, normed, scene, close, device):
    s = scene(TOKENS, heads, head_dim, dtype, live=5)
    k, v = torch.randn(2, len(TOKENS), heads * head_dim, device=device).to(dtype)
    norm = Norm(torch.randn(head_dim, device=device).to(dtype), 1e-5, True) if normed else None
    k_wanted, v_wanted = s.k_cache.clone(), s.v_cache.clone()
    turned = k.unflatten(-1, (heads, -1))
    turned = turned if norm is None else definition.rms_norm(turned, *norm)
    turned = definition.rope(turned, s.place.positions, s.rope.inv_freq, s.rope.scaling)
    where = s.place.page_table, s.place.sequences[:5], s.place.positions[:5]
    definition.write_kv(k_wanted, v_wanted, turned[:5], v.unflatten(-1, (heads, -1))[:5], *where)
    route(k, v, norm, s.angles.cos["full"], s.angles.sin["full"], s.k_cache, s.v_cache, s.place, None)
    close(s.k_cache, k_wanted)
    torch.testing.assert_close(s.v_cache, v_wanted, equal_nan=True, rtol=0, atol=0)


def _choice(device, router=None, code=None, offsets=None, given=None):
    rows = len(TOKENS)
    score, run, skip = (torch.full((rows,), 7.0, device=device) for _ in range(3))
    keep = torch.full((rows,), 7, dtype=torch.uint8, device=device)
    offsets = torch.zeros(rows, device=device) if offsets is None else offsets
    arrived = torch.zeros(1, dtype=torch.int32, device=device)
    return Choice(router, code, offsets, given, keep, score, run, skip, Split.empty(rows, device), arrived)


def _run(s, choice, device):
    k, v = torch.randn(2, len(TOKENS), 16, device=device)
    route(k, v, None, s.angles.cos["full"], s.angles.sin["full"], s.k_cache, s.v_cache, s.place, choice)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("order", ["norm_tanh", "tanh_norm"])
def test_decisions_equal_the_reference(order, soft, scene, device):
    s = scene(TOKENS, live=5)
    torch.manual_seed(3)
    z = torch.randn(len(TOKENS), 20, device=device)
    enc, norm = Dense(torch.randn(6, 20, device=device)), Norm(torch.rand(6, device=device), 1e-5)
    last = Dense(torch.randn(1, 6, device=device), torch.tensor([0.1], device=device))
    between = (norm, Act("tanh")) if order == "norm_tanh" else (Act("tanh"), norm)
    router = RouterTensors((enc, *between, last), 0.2, soft)
    offsets = torch.tensor([0.0, INF, -0.5, 0.5, -INF, 0.0], device=device)
    choice = _choice(device, gate_of(router), z @ enc.weight.T, offsets)
    _run(s, choice, device)
    wanted = definition.choose(Branch("ops", router), offsets[:5], definition.router_number(z[:5], router))
    assert choice.keep[:5].bool().tolist() == wanted.keep.tolist()
    torch.testing.assert_close(choice.score[:5], wanted.score)
    torch.testing.assert_close(choice.run[:5], wanted.run)
    torch.testing.assert_close(choice.skip[:5], wanted.skip)
    kept, skipped = choice.into
    assert kept.index is not None and skipped.index is not None
    assert kept.index[: kept.count].tolist() == wanted.keep.nonzero().flatten().tolist()
    assert skipped.index[: skipped.count].tolist() == (~wanted.keep).nonzero().flatten().tolist()
    assert choice.arrived.item() == 0
    assert choice.keep[5] == 7  # padding is left alone


def test_a_given_decision_is_taken_but_for_untouched_rows(scene, device):
    s = scene(TOKENS)
    offsets = torch.tensor([0.0, INF, 0.0, 0.0, 0.0, 0.0], device=device)
    choice = _choice(device, offsets=offsets, given=torch.tensor([1, 0, 0, 1, 0, 1], dtype=torch.uint8, device=device))
    _run(s, choice, device)
    assert choice.keep.tolist() == [1, 1, 0, 1, 0, 1]
    assert choice.score.tolist() == [1, 1, 0, 1, 0, 1]
    assert choice.run.tolist() == choice.skip.tolist() == [1] * 6
