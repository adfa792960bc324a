"""Passes without layers, beside the plain ones that they stand for: from the first layer on, with the whole head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdial.evaluate.headroom import passes
from depthdial.evaluate.headroom.passes import Drops
from depthdial.evaluate.headroom.text import Rows
from depthdial.evaluate.store import Store
from depthdial.methods.static import nested
from depthdial.models.calibration import BaseProbe
from depthdial.models.convert import Readout, layers_of
from depthdial.models.families import FAMILIES
from depthdial.models.halves import Passed, swapped

ROWS = Rows(
    [torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (12, 20, 9)],
    [["template", "number"] * 6, ["content word"] * 20, ["template"] * 9],
)


@pytest.fixture(autouse=True)
def _whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LIKELIEST", 300)  # of a tiny vocabulary all tokens, or nothing would be compared
    monkeypatch.setattr(passes, "FEW", 16)


def drops(model: Any, store: Store | None = None) -> Drops:
    return Drops(model, ROWS, store or Store(), "a base")


@torch.no_grad()
def by_hand(model: Any, row: list[int], dropped: tuple[int, ...]) -> Tensor:
    """log p [T, V] of a model whose dropped layers hand on what they are given."""
    layers = nn.ModuleList(Passed() if i in dropped else layer for i, layer in enumerate(layers_of(model)))
    with swapped(model.get_decoder(), layers=layers):
        return model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_lost_is_that_of_whole_passes(tiny_model: Callable, family: str):
    model, sets = tiny_model(family), [(4,), (1, 2), ()]
    found, alike = drops(model).each_without(sets), drops(model).without((1, 2))
    assert list(drops(model).row) == [0] * 6 + [1] * 19, "a token before the template's counts for nothing"
    for row, dropped in enumerate(sets[:2]):
        base, other = by_hand(model, ROWS.ids[row], ()), by_hand(model, ROWS.ids[row], dropped)
        own = [t for t, kind in enumerate(ROWS.classes[row][1:]) if kind != "template"]
        kl = F.kl_div(other, base, reduction="none", log_target=True).sum(-1)[own]
        after = torch.tensor(ROWS.ids[row])[1:, None]
        nll = (base[:-1].gather(-1, after) - other[:-1].gather(-1, after))[own, 0]
        mine = drops(model).row == row
        assert found.kl[mine] == pytest.approx(kl.numpy(), abs=1e-4) and kl.mean() > 0.01
        assert found.nll[mine] == pytest.approx(nll.numpy(), abs=1e-4)
    assert np.array_equal(alike.kl[6:], found.kl[6:]) and not np.allclose(alike.kl[:6], found.kl[:6])


def test_the_greedy_search_finds_what_whole_passes_find(tiny_model: Callable):
    model = tiny_model("llama")
    ids = torch.tensor([ROWS.ids[1]])
    labels = ids.index_fill(1, torch.tensor([19]), -100)  # nothing is predicted after the last token
    batch = {"input_ids": ids, "labels": labels, "position_ids": torch.arange(20)[None]}
    rows = Rows([ROWS.ids[1]], [ROWS.classes[1]])
    found, slow = Drops(model, rows, Store(), "a base"), BaseProbe(model, [batch])
    mine, theirs = (nested(6, 4, probe.divergence) for probe in (found, slow))
    assert [layer for layer, _ in mine] == [layer for layer, _ in theirs]
    assert [cost for _, cost in mine] == pytest.approx([cost for _, cost in theirs], rel=1e-4)


def test_the_head_before_each_layer(tiny_model: Callable):
    model = tiny_model("llama")
    found, states = drops(model).likeliest(), []
    hook = layers_of(model)[3].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    best = model(torch.tensor([ROWS.ids[1]]), use_cache=False).logits[0, :-1].argmax(-1)
    hook.remove()
    assert found.shape == (6, 25)
    assert torch.equal(torch.tensor(found[3, 6:]), Readout(model)(states[0][0, :-1]).argmax(-1) == best)


def test_what_is_known_is_not_run_again(tiny_model: Callable, tmp_path: Path):
    model, store = tiny_model("llama"), tmp_path / "chunks.jsonl"
    before = drops(model, Store(store)).without((2,))
    ran: list[int] = []
    layers_of(model)[0].register_forward_pre_hook(lambda *_: ran.append(0))
    again = drops(model, Store(store))
    assert np.array_equal(again.without((2,)).kl, before.kl) and not ran
    again.without((3,))
    assert len(ran) == len(ROWS.ids), "the base's own passes, once for all"
    again.without((4,))
    assert len(ran) == len(ROWS.ids)


def test_a_bucket_for_the_rest_takes_little(tiny_model: Callable, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama")
    whole = drops(model).without((1,)).kl
    monkeypatch.setattr(passes, "LIKELIEST", 250)
    some = drops(model).without((1,)).kl
    assert (some <= whole + 1e-5).all() and not np.allclose(some, whole)


def test_numbers_that_are_none_are_refused(tiny_model: Callable):
    model = tiny_model("llama")
    layers_of(model)[3].get_submodule("mlp.up_proj").get_parameter("weight").data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"logits without the layers \[1\] are not finite; check the weights"):
        drops(model).without((1,))
