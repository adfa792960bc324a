"""Readout exits against the forward written by hand, and the classifier that calibration fits in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from depthdial.core.cost import Ledger
from depthdial.methods import METHODS, Readout, method_named
from depthdial.models.checkpoint import Plugin, attach, save
from depthdial.models.convert import convert
from depthdial.models.fingerprint import fingerprint

IDS = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(0))
ADAINFER: Any = method_named("readout", dict(METHODS["readout"].example))
CALM = Readout(layers=(2, 4), head_rows=100, rule="calm", threshold=0.17)
OFFSETS = torch.tensor([0.0, -0.02, 0.03])


def leaves(method: Readout, layer: int, logits: Tensor, offset: Tensor) -> Tensor:
    """bool [B, T]: the papers' rules."""
    ranked = logits[..., : method.head_rows].softmax(-1).sort(-1, descending=True).values
    top, gap = ranked[..., 0], ranked[..., 0] - ranked[..., 1]
    if method.rule == "calm":
        return top > method.threshold + offset
    w_top, w_gap, b = method.classifiers[method.layers.index(layer)]
    return w_top * top + w_gap * gap + b > offset


def by_hand(stock: Any, method: Readout, ids: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] of a stock Llama, and how many layers each token ran, int64 [B, T]. A token that has left keeps
    its state, of which every later layer makes its key and value."""
    x, places = stock.model.embed_tokens(ids), torch.arange(ids.shape[1])[None]
    how = {"position_embeddings": stock.model.rotary_emb(x, position_ids=places), "position_ids": places}
    gone, ran = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)
    for i, layer in enumerate(stock.model.layers):
        if i in method.layers:
            gone = gone | leaves(method, i, stock.lm_head(stock.model.norm(x)), offset[:, None])
        x = torch.where(gone[..., None], x, layer(x, **how))
        ran += ~gone
    return stock.lm_head(stock.model.norm(x)), ran


@pytest.mark.parametrize("method", [ADAINFER, CALM], ids=["adainfer", "calm"])
@torch.no_grad()
def test_forward_is_the_papers(tiny_model: Callable, method: Readout):
    model: Any = convert(tiny_model("llama"), method)
    stock = tiny_model("llama")
    converted = model.converted
    converted.set(offset=OFFSETS)
    logits, ran = by_hand(stock, method, IDS, OFFSETS)
    assert all((ran == n).any() for n in (2, 4, 6)), "some leave at each of the layers, and some stay"
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(converted.route.layers_used, ran)


@torch.no_grad()
def test_a_written_text_is_that_of_passes_over_all_of_it(tiny_model: Callable):
    """The cache holds the keys and values of exit states, of which a pass over the whole text makes the same."""
    model: Any = convert(tiny_model("llama"), ADAINFER)
    stock = tiny_model("llama")
    ids, depths = IDS[:1, :4], []
    for _ in range(12):
        logits, ran = by_hand(stock, ADAINFER, ids, torch.zeros(1))
        depths.append(int(ran[0, -1]))
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert len(set(depths)) == 3
    assert torch.equal(model.generate(IDS[:1, :4], max_new_tokens=12, do_sample=False, eos_token_id=None), ids)


@torch.no_grad()
def test_a_threshold_that_nobody_meets_is_dense_and_pays_for_the_looks(tiny_model: Callable):
    model: Any = convert(tiny_model("llama"), Readout((2, 4), 100, "calm", threshold=1.0))
    stock = tiny_model("llama")
    route, ledger = model.route, model.converted.ledger
    assert isinstance(ledger, Ledger)
    assert torch.equal(model(IDS).logits, stock(IDS).logits)
    assert route.cost() == pytest.approx(1 + 2 * 100 * 32 / ledger.dense)
    model.converted.set(offset=-1.0)  # everybody leaves at the first look
    assert not torch.equal(model(IDS).logits, stock(IDS).logits)
    layer = ledger.layers[0]
    assert route.cost() == pytest.approx((2 * layer.total + 4 * layer.kv + ledger.head + 100 * 32) / ledger.dense)
    assert route.cost() == pytest.approx(ledger.floor)
    model.converted.set(offset=math.inf)
    assert route.cost() < 1 and model(IDS) and route.cost() == 1.0, "the untouched base does not look"


class FakeProbe:
    """A base of 10 layers with made-up readouts: right where the top probability plus half the gap is high enough."""

    depth = 10

    def __init__(self, n: int = 2000):
        generator = torch.Generator().manual_seed(0)
        top = torch.rand(3, n, generator=generator)
        self.x = torch.stack([top, top * torch.rand(3, n, generator=generator)], -1)
        self.noise = 0.1 * torch.randn(3, n, generator=generator)
        self.asked: list[Any] = []

    def block_influence(self) -> Sequence[float]:
        raise AssertionError

    def divergence(self, dropped: Sequence[int]) -> float:
        raise AssertionError

    def readouts(self, layers: Sequence[int], head_rows: int | None) -> tuple[Tensor, Tensor]:
        self.asked.append((tuple(layers), head_rows))
        bar = torch.tensor([[0.9], [0.7], [5.0]])
        return self.x, self.x[..., 0] + self.x[..., 1] / 2 + self.noise > bar


def test_calibration_fits_a_classifier_for_each_layer_in_closed_form():
    probe, lines = FakeProbe(), []
    fitted = Readout(head_rows=50).calibrate(probe, lines.append)
    assert fitted.layers == (4, 6, 8) and probe.asked == [((4, 6, 8), 50)] and len(lines) == 3
    x, right = probe.readouts((), None)
    for i in range(2):
        w_top, w_gap, b = fitted.classifiers[i]
        guess = w_top * x[i, :, 0] + w_gap * x[i, :, 1] + b > 0
        assert (guess == right[i]).float().mean() > 0.9
        # the direction is that of least squares on the labels, which is another road to it
        design = torch.cat([x[i], torch.ones(len(x[i]), 1)], 1).double()
        least = torch.linalg.lstsq(design, right[i].double()[:, None]).solution[:, 0]
        assert w_gap / w_top == pytest.approx(float(least[1] / least[0]), rel=1e-3)
    assert not right[2].any() and fitted.classifiers[2][:2] == (0, 0) and fitted.classifiers[2][2] < -5, "never leave"
    assert fitted.calibrate(probe) == fitted, "what is fitted stays"


def test_calms_threshold_needs_no_fit():
    assert Readout(rule="calm").calibrate(FakeProbe()) == Readout(rule="calm")


def test_readouts_of_a_model_are_what_the_step_shows(tiny_model: Callable, packed: Callable):
    """Fitted on a model, the classifier leaves more often where it is right than where it is not."""
    from depthdial.models.calibration import BaseProbe

    batch = packed(rows=16, length=16)
    method = Readout(layers=(4, 5), head_rows=100).calibrate(BaseProbe(tiny_model("llama"), [batch]))
    model: Any = convert(tiny_model("llama"), method)
    with torch.no_grad():
        full = tiny_model("llama")(batch["input_ids"], position_ids=batch["position_ids"]).logits.argmax(-1)
        logits = model(batch["input_ids"], position_ids=batch["position_ids"]).logits
    left = ~model.route.decisions[5].keep
    right = (logits.argmax(-1) == full)[left].float().mean()
    assert left.any() and not left.all() and right > 0.5, right


def test_the_fit_is_saved_with_the_method(tiny_model: Callable, tmp_path: Path):
    model: Any = convert(tiny_model("llama"), ADAINFER)
    stock = tiny_model("llama")
    save(model, tmp_path / "readout", Plugin("readout", ADAINFER, fingerprint(stock)))
    again: Any = attach(tiny_model("llama"), tmp_path / "readout")
    assert again.converted.method == ADAINFER and isinstance(again.converted.method.classifiers[0], tuple)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_what_is_not_fitted_does_not_run(tiny_model: Callable):
    with pytest.raises(ValueError, match="not fitted yet: calibrate the method"):
        convert(tiny_model("llama"), Readout(layers=(2,)))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rule": "svm"}, "rule must be"),
        ({"layers": [4, 2]}, "layers must rise"),
        ({"head_rows": 1}, "head_rows must be at least 2"),
        ({"classifiers": [[1.0, 2.0]], "layers": [2]}, "three numbers"),
        ({"classifiers": [[1.0, 2.0, 3.0]]}, "1 classifiers do not fit 0 listed layers"),
        ({"classifiers": [1.0, 2.0, 3.0]}, "classifiers of method 'readout' is a list"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        method_named("readout", fields)


def test_layers_that_the_model_lacks_are_refused(tiny_model: Callable):
    with pytest.raises(ValueError, match="does not fit a model of 6 layers"):
        convert(tiny_model("llama"), Readout(layers=(2, 6), rule="calm"))
