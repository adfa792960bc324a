"""A prefill pass equals the reference, and gathers what a layer keeps."""

from __future__ import annotations

import pytest
import torch
from tests.kernels import definition

from depthdial.kernels.passing import PassTokens
from depthdial.kernels.triton import prefill_pass
from depthdial.kernels.triton.prefill_pass import PrefillPass
from depthdial.kernels.triton.route import Place
from depthdial.kernels.triton.rows import Rows

INF = float("inf")
TOKENS = [(0, p) for p in range(58, 75)] + [(1, p) for p in range(6)]
STARTS = [0, 17, 23]


def _run(model, filled, device, given=None, routed=True, dtype=torch.float32, offsets=None):
    n = len(TOKENS)
    table = torch.tensor([[3, 0], [1, 4]], dtype=torch.int32, device=device)
    mine, theirs = filled(model, table, 6, dtype), filled(model, table, 6, dtype)
    where = torch.tensor(TOKENS, dtype=torch.int32, device=device)
    sequences, positions = where[:, 0].contiguous(), where[:, 1].contiguous()
    place = Place(Rows(torch.tensor([n], dtype=torch.int32, device=device)), sequences, positions, table)
    if offsets is None:
        offsets = torch.linspace(-0.6, 0.6, n, device=device)
        offsets[5] = INF
    ids = torch.arange(n, device=device) * 2
    made = PrefillPass(model, mine, place, STARTS, offsets, given, routed)
    x = made.run(ids)
    wanted = definition.forward_pass(model, PassTokens(ids, positions, sequences, offsets, given), theirs)
    return made, made.logits(x[[16, 22]]), wanted, mine, theirs


@pytest.mark.parametrize(
    "settings", [{}, {"soft": True, "gemma": True}, {"bias": True, "routed": (2,)}], ids=["plain", "gemma", "bias"]
)
def test_pass_equals_the_reference(settings, tiny_tensors, filled, device, monkeypatch):
    monkeypatch.setattr(prefill_pass, "ROUND", 8)
    model = tiny_tensors(**settings)
    given = None
    if "routed" in settings:
        given = (torch.arange(3 * len(TOKENS), device=device).view(3, -1) % 3 > 0).to(torch.uint8)
    made, logits, wanted, mine, theirs = _run(model, filled, device, given)
    assert torch.equal(made.keep, wanted.keep)
    assert made.rows_run == wanted.keep.sum(1).tolist()
    assert min(made.rows_run) < len(TOKENS)
    n = len(TOKENS)
    parts = [c for c in made.rows_run if c < n]
    if "routed" not in settings:  # kept and skipped rows of the two routed layers, in eights of a pass of 23
        assert made.padded_rows == sum(min(-(-c // 8) * 8, n) - c for kept in parts for c in (kept, n - kept))
    torch.testing.assert_close(made.score, wanted.score, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits, wanted.logits[[16, 22]], rtol=1e-4, atol=1e-4)
    for got, want in zip(mine[:2], theirs[:2], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_a_unit_that_no_row_runs_is_not_read(offset, tiny_tensors, filled, device):
    model = tiny_tensors()
    for layer in model.layers[1:]:
        assert layer.adapter is not None
        idle = (layer.q, layer.o, layer.gate, layer.up, layer.down) if offset < 0 else ()
        for weight in (*(linear.weight for linear in idle), *(layer.adapter if offset > 0 else ())):
            assert isinstance(weight, torch.Tensor)
            weight.fill_(float("nan"))
    made, logits, *_ = _run(model, filled, device, offsets=torch.full((len(TOKENS),), offset, device=device))
    assert logits.isfinite().all()
    n = len(TOKENS)
    assert made.rows_run == [n, *[n if offset > 0 else 0] * 2]


def test_unrouted_pass_is_the_base(tiny_tensors, filled, device):
    model = tiny_tensors()
    offsets = torch.full((len(TOKENS),), INF, device=device)
    made, logits, wanted, *_ = _run(model, filled, device, routed=False, offsets=offsets)
    assert made.keep.all()
    torch.testing.assert_close(logits, wanted.logits[[16, 22]], rtol=1e-4, atol=1e-4)


def test_k_and_v_that_nobody_asks_for_are_neither_projected_nor_written(tiny_tensors, filled, device, monkeypatch):
    monkeypatch.setattr(prefill_pass, "ROUND", 8)
    model = tiny_tensors(routed=())
    model = model._replace(layers=tuple(layer._replace(absent="nothing") for layer in model.layers))
    given = torch.zeros(3, len(TOKENS), dtype=torch.uint8, device=device)
    given[0], given[1, ::2] = 1, 1
    for part in (model.layers[2].k, model.layers[2].v):  # no row runs this layer
        assert isinstance(part.weight, torch.Tensor)
        part.weight.fill_(float("nan"))
    offsets = torch.zeros(len(TOKENS), device=device)
    _, logits, wanted, mine, theirs = _run(model, filled, device, given, offsets=offsets)
    torch.testing.assert_close(logits, wanted.logits[[16, 22]], rtol=1e-4, atol=1e-4)
    for got, want in zip(mine[:2], theirs[:2], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
