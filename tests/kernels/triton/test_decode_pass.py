"""A whole decode pass equals the reference, row by row, and does no work for what is skipped."""

from __future__ import annotations

import pytest
import torch
from tests.kernels import definition

from depthdial.kernels.passing import PassTokens
from depthdial.kernels.tensors import Int8
from depthdial.kernels.triton.decode_pass import WORK, DecodePass
from depthdial.kernels.triton.tiles import Tile, Tiles, tiles_for

INF = float("inf")
SMALL = Tiles(*[Tile(16, 32, 32, 4, 2)] * 5)


@pytest.fixture
def run(filled, device):
    """`run(model, tokens, offsets)`, tokens as (sequence, position): the pass, what the reference says, and the caches
    after both."""

    def go(model, tokens, offsets, dtype=torch.float32, given=None, rows=None, **settings):
        return _run(model, tokens, offsets, filled, device, dtype, given, rows, **settings)

    return go


def _run(model, tokens, offsets, filled, device, dtype, given, rows, **settings):
    table = torch.tensor([[3, 0], [1, 4], [2, 5]], dtype=torch.int32, device=device)
    mine, theirs = filled(model, table, 6, dtype), filled(model, table, 6, dtype)
    made = DecodePass(model, mine, rows or len(tokens), given=given is not None, work=True, **settings)
    n = len(tokens)
    made.ids[:n] = torch.arange(3, 3 + n)
    made.place.live.count.fill_(n)
    for i, (sequence, position) in enumerate(tokens):
        made.place.sequences[i], made.place.positions[i] = sequence, position
    made.offsets[:n] = torch.tensor(offsets)
    if given is not None:
        made.given[:, :n] = given
    made.run()
    where = made.place.positions[:n], made.place.sequences[:n]
    wanted = definition.forward_pass(model, PassTokens(made.ids[:n], *where, made.offsets[:n], given), theirs)
    return made, wanted, mine, theirs


TOKENS = [(0, 70), (1, 3), (2, 63), (1, 4)]  # two of sequence 1: the later sees the earlier


@pytest.mark.parametrize(
    ("dtype", "settings", "bound"),
    [
        (torch.float32, {}, 1e-4),
        (torch.float32, {"soft": True, "gemma": True}, 1e-4),
        (torch.float32, {"bias": True, "kv_heads": 1}, 1e-4),
        (torch.bfloat16, {"routed": ()}, 8e-2),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_pass_equals_the_reference(dtype, settings, bound, many, tiny_tensors, run):
    model = tiny_tensors(dtype, **settings)
    tiles = SMALL if not many else Tiles(*[Tile(16, 32, 16, 4, 2)] * 5)
    rows = 17 if many else None  # beyond 16 rows, norms have kernels of their own; 13 rows are padding
    made, wanted, mine, theirs = run(model, TOKENS, [0.0, 0.4, INF, -0.4], dtype, rows=rows, tiles=tiles)
    assert torch.equal(made.keep[:, :4], wanted.keep)
    if settings.get("routed", True):
        assert 0 < int(wanted.keep.sum()) < wanted.keep.numel()  # the case must skip something, and keep something
    torch.testing.assert_close(made.score[:, :4], wanted.score, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.logits[:4], wanted.logits, rtol=bound, atol=bound * float(wanted.logits.std()))
    for got, want in zip(mine[:2], theirs[:2], strict=True):
        torch.testing.assert_close(got, want, rtol=bound, atol=bound)
    assert made.greedy[:4].tolist() == made.logits[:4].argmax(-1).tolist()


def test_given_decisions(tiny_tensors, run, device):
    model = tiny_tensors(routed=(2,))
    given = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.uint8, device=device)
    made, wanted, *_ = run(model, TOKENS, [0.0, 0.4, INF, -0.4], given=given, tiles=SMALL)
    assert torch.equal(made.keep, wanted.keep)
    assert made.keep[1].tolist() == [1, 0, 1, 1]  # an untouched row runs whatever is given
    torch.testing.assert_close(made.logits, wanted.logits, rtol=1e-4, atol=1e-4)


def test_unrouted_pass_is_the_base(tiny_tensors, run):
    model = tiny_tensors()
    made, wanted, *_ = run(model, TOKENS, [INF] * 4, routed=False, tiles=SMALL)
    assert made.keep.all() and wanted.keep.all()
    torch.testing.assert_close(made.logits, wanted.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_no_weight_of_what_does_not_run_is_read(offset, tiny_tensors, run):
    """Poisoned with NaN, and the tiles and pages counted."""
    model = tiny_tensors()
    nan = float("nan")
    for layer in model.layers[1:]:
        assert layer.adapter is not None
        idle = (layer.q, layer.o, layer.gate, layer.up, layer.down) if offset < 0 else ()
        for weight in (*(linear.weight for linear in idle), *(layer.adapter if offset > 0 else ())):
            assert isinstance(weight, torch.Tensor)
            weight.fill_(nan)
    made, *_ = run(model, [(0, 70)], [offset], tiles=SMALL)
    assert made.logits.isfinite().all()
    assert made.keep.flatten().tolist() == [1, *[int(offset > 0)] * 2]
    assert made.work is not None
    work = [dict(zip(WORK, row, strict=True)) for row in made.work.tolist()]
    dense = {"kv": 3, "q": 0, "pages": 4, "o": 1, "gate_up": 2, "down": 1, "adapter_up": 0, "adapter_down": 0}
    assert work[0] == dense  # q shares the launch of k and v; two heads of two pages
    runs = dense | {"q": 1}
    rests = dict.fromkeys(WORK, 0) | {"kv": 3, "adapter_up": 1, "adapter_down": 1}
    assert work[1] == work[2] == (runs if offset > 0 else rests)


def test_k_and_v_that_nobody_asks_for_are_neither_projected_nor_written(tiny_tensors, run, device):
    model = tiny_tensors(routed=())
    model = model._replace(layers=tuple(layer._replace(absent="nothing") for layer in model.layers))
    given = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.uint8, device=device)
    for part in (model.layers[2].k, model.layers[2].v):  # no row runs this layer
        assert isinstance(part.weight, torch.Tensor)
        part.weight.fill_(float("nan"))
    made, wanted, mine, theirs = run(model, TOKENS, [0.0, 0.4, 0.1, -0.4], given=given, tiles=SMALL)
    torch.testing.assert_close(made.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    for got, want in zip(mine[:2], theirs[:2], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_int8_weights_are_refused(tiny_tensors, run):
    model = tiny_tensors()
    head = Int8(torch.zeros(50, 32, dtype=torch.int8), torch.ones(50))
    with pytest.raises(ValueError, match="int8"):
        run(model._replace(head=head), TOKENS, [0.0] * 4, tiles=tiles_for(4))
