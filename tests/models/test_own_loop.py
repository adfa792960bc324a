"""A loop of one's own: the method's loss, the curve, and a plug-in with a dial at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.laws.examples import WITH_PARTS, example

import depthdial
from depthdial.methods import Dense, FlexiDepth
from depthdial.models.convert import convert
from depthdial.models.converted import unwrapped
from depthdial.models.own_loop import LONGEST

IDS = torch.randint(3, 300, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny_model, adaptive) -> Any:
    return adaptive(tiny_model("llama"), weights="hard", alpha=0.5)


def test_the_loss_is_the_methods_mean_over_real_tokens(model):
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    model(IDS, attention_mask=mask)
    last = model.route.last
    by_hand = 0.5 * last.trace.stack("score", "attn").sum(0).square().view_as(IDS)
    loss = depthdial.method_loss(model)
    assert loss.shape == () and loss.dtype == torch.float32
    torch.testing.assert_close(loss, by_hand[mask.bool()].mean())
    assert not torch.allclose(loss, by_hand.mean())
    loss.backward()
    routers = [weight for name, weight in model.named_parameters() if ".router." in name]
    assert routers and all(weight.grad is not None for weight in routers)


@pytest.mark.parametrize("method", WITH_PARTS)
def test_every_method_with_parts_can_be_trained_and_calibrated(tiny_model, method: str, tmp_path: Path):
    model: Any = convert(tiny_model("llama"), example(method))
    trained = [weight for name, weight in model.named_parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        (model(IDS, labels=IDS).loss + depthdial.method_loss(model)).backward()
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
    curve = depthdial.calibrate(model, [IDS])
    assert len(curve.offsets) >= 2 and model.training, "left as it was"
    folder = depthdial.save(model, tmp_path / "mine")
    fields = json.loads((folder / "method.json").read_text())
    assert fields["name"] == "mine" and fields["curves"]["text"]["costs"] == list(curve.costs)
    if curve.floor <= 1:
        assert curve.floor <= fields["recommended_budget"] <= 1
    else:
        assert fields["recommended_budget"] is None, "routers that cost more than this tiny model's layers save"


def test_a_method_without_a_loss_has_none(tiny_model):
    model: Any = convert(tiny_model("llama"), Dense())
    model(IDS)
    assert depthdial.method_loss(model) == 0


def test_the_curve_is_what_passes_cost_and_turns_the_dial(model):
    model.eval()
    curve = depthdial.calibrate(model, [IDS[:2], {"input_ids": IDS[2:]}])
    for offset, cost in zip(curve.offsets[::6], curve.costs[::6], strict=True):
        model.converted.set(offset=offset)
        with torch.no_grad():
            model(IDS)
        assert model.route.cost() <= cost + 1e-4, "levelled, so that costs rise"
    assert curve.costs[-1] - curve.costs[0] > 0.05, "the routers disagree, so the dial does something"
    depthdial.set_budget(model, 1.0)
    assert model.converted.settings.offset == math.inf
    middle = (curve.floor + curve.costs[-1]) / 2
    depthdial.set_budget(model, middle)
    with torch.no_grad():
        model(IDS)
    assert abs(model.route.cost() - middle) < 0.03


def test_what_is_padded_or_unlabelled_does_not_count(model):
    """Rows padded on either side measure as the rows alone."""
    short = IDS[:1, :9]
    alone = depthdial.calibrate(model, [short])
    for side in ("left", "right"):
        fill, ones = torch.zeros(1, 7, dtype=torch.long), torch.ones(1, 9, dtype=torch.long)
        parts = ([fill, short], [fill, ones]) if side == "left" else ([short, fill], [ones, fill])
        ids, mask = (torch.cat(each, 1) for each in parts)
        padded = depthdial.calibrate(model, [{"input_ids": ids, "attention_mask": mask}])
        torch.testing.assert_close(padded.costs, alone.costs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(padded.kls, alone.kls, rtol=1e-3, atol=1e-4)
    labels = IDS.clone()
    labels[:, :20] = -100
    some = depthdial.calibrate(model, [{"input_ids": IDS, "labels": labels}])
    assert some.costs != depthdial.calibrate(model, [IDS]).costs


def test_texts_are_taken_with_their_tokenizer(model, tiny_tokenizer):
    texts = ["the quick brown fox", "jumps over " * LONGEST]
    curve = depthdial.calibrate(model, (text for text in texts), tiny_tokenizer, recommended=0.9)
    batches = [tiny_tokenizer(t, truncation=True, max_length=LONGEST, return_tensors="pt") for t in texts]
    assert batches[1]["input_ids"].shape[1] == LONGEST
    assert depthdial.calibrate(model, batches).costs == curve.costs
    assert model.converted.plugin.recommended != 0.9
    with pytest.raises(ValueError, match="give the tokenizer of these texts, too"):
        depthdial.calibrate(model, texts)


def test_what_cannot_be_is_said(model, tiny_model):
    with pytest.raises(ValueError, match="no text to measure"):
        depthdial.calibrate(model, [])
    with pytest.raises(ValueError, match="input_ids of two dimensions"):
        depthdial.calibrate(model, [IDS[0]])
    with pytest.raises(ValueError, match="outside what this plug-in can do"):
        depthdial.calibrate(model, [IDS], recommended=0.01)
    assert model.converted.plugin is None, "nothing was half done"
    with pytest.raises(ValueError, match="not converted"):
        depthdial.method_loss(tiny_model("llama"))
    with pytest.raises(ValueError, match="not converted"):
        depthdial.calibrate(tiny_model("llama"), [IDS])
    with pytest.raises(ValueError, match="no forward pass"):
        depthdial.method_loss(convert(tiny_model("llama"), Dense()))


def test_routers_explore_while_the_model_is_in_training(tiny_model):
    """As dropout does: `train()` and `eval()` say it, torch's seed repeats it."""
    method = FlexiDepth(first=2, weights="hard", gate_gradient="sampled", start=0.0)
    model: Any = convert(tiny_model("llama"), method)

    def routes() -> torch.Tensor:
        model(IDS)
        return model.route.keep()

    assert torch.equal(routes(), routes())
    model.train()
    torch.manual_seed(1)
    one, two = routes(), routes()
    torch.manual_seed(1)
    assert torch.equal(routes(), one) and not torch.equal(one, two)
    model.converted.set(progress=1.0)
    assert torch.equal(routes(), routes()), "at the end routers stand still"
    model.converted.set(training=False, progress=0.0)
    assert torch.equal(routes(), routes()), "whoever says so decides"


def test_what_is_put_around_a_model_does_not_matter(model, tmp_path: Path):
    around: Any = torch.compile(model, backend="eager")
    assert unwrapped(around) is model
    model(IDS)
    assert depthdial.method_loss(around) == depthdial.method_loss(model)
