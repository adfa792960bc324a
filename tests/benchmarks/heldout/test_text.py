"""Scores of held-out text equal those of whole, plain forward passes, pass by pass; methods meet at one cost."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from depthdial.evaluate.equal_cost import KnobMix
from depthdial.methods import Random, Static
from depthdial.models.calibration import Heldout
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from heldout.text import HeldoutText, PluginRun, counted, of_pass, of_prediction, offset_for_cost


@pytest.fixture
def model(tiny_model, adaptive):
    return adaptive(tiny_model("llama"), weights="hard")


def text_of(model, batches, **groups) -> tuple[PluginRun, HeldoutText]:
    heldout = Heldout(model, batches)
    return PluginRun(heldout), HeldoutText(batches, heldout.teacher, heldout.head, groups)


def test_scores_equal_plain_forward_passes(model, packed_batches):
    batches = packed_batches()
    run, text = text_of(model, batches)
    scores = text.score(run, -0.4)
    logits, costs, layers, base = [], [], [], []
    for batch in batches:
        given = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        with torch.no_grad():
            converted_of(model).set(offset=math.inf)
            base.append(model(**given).logits)
            converted_of(model).set(offset=-0.4)
            logits.append(model(**given).logits)
        costs.append(model.route.token_cost())
        layers.append(model.route.layers_used)
    ids = torch.cat([b["input_ids"] for b in batches])
    follows = torch.zeros(ids.shape, dtype=torch.bool)
    follows[:, :11] = follows[:, 12:23] = True  # two documents of 12: the last pass of each predicts nothing
    assert counted(batches[0]).equal(follows[:2])
    target = ids.roll(-1, 1)[follows]
    student, teacher = torch.cat(logits)[follows], torch.cat(base)[follows]
    torch.testing.assert_close(scores.ce, F.cross_entropy(student, target, reduction="none"))
    torch.testing.assert_close(scores.base_ce, F.cross_entropy(teacher, target, reduction="none"))
    kl = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(scores.kl, kl, rtol=1e-3, atol=1e-4)
    assert scores.agree.equal(student.argmax(-1) == teacher.argmax(-1))
    torch.testing.assert_close(scores.cost, torch.cat(costs)[follows])
    assert scores.layers.equal(torch.cat(layers)[follows])
    assert len(scores.layers.unique()) > 1  # routers disagree: the test would notice a static route
    assert scores.row.unique().tolist() == [0, 1, 2, 3, 4, 5]


def test_the_untouched_base_scores_exactly_as_itself(model, packed_batches):
    run, text = text_of(model, packed_batches())
    all_ = text.score(run, math.inf).summary()
    assert (all_.cost, all_.ratio, all_.kl, all_.agreement, all_.layers) == (1.0, 1.0, 0.0, 1.0, 6.0)


def test_labels_taken_out_are_not_counted(model, packed_batches):
    batches = packed_batches()
    batches[1]["labels"][0, 5] = -100
    out = counted(batches[1])
    assert not out[0, 4] and out[0, 5]  # the pass before it predicted it
    run, text = text_of(model, batches)
    assert text.score(run, 0.0).summary().tokens == 3 * 2 * 22 - 1


def test_groups_follow_the_predicted_token(model, packed_batches):
    batches = packed_batches()
    low = [b["input_ids"] < 150 for b in batches]
    run, text = text_of(model, batches, low=low)
    scores = text.score(run, -0.4)
    found = text.summaries(scores)
    where = torch.cat([b["input_ids"].roll(-1, 1)[counted(b)] < 150 for b in batches])
    assert list(found) == ["all", "low"]
    assert found["low"].tokens == int(where.sum())
    assert found["low"].ce == pytest.approx(float(scores.ce[where].mean()), rel=1e-6)
    ids = batches[0]["input_ids"]
    assert of_pass(batches[0], ids)[:3].tolist() == ids[0, :3].tolist()
    assert of_prediction(batches[0], ids)[:3].tolist() == ids[0, 1:4].tolist()


@pytest.mark.parametrize("cost", [0.95, 0.85])
def test_flexidepth_meets_a_cost(model, packed_batches, cost):
    batches = packed_batches(4, 3, 64)
    run, text = text_of(model, batches)
    knob, scores = text.at_cost(run, cost, text.search(run, every=2))
    assert abs(scores.summary().cost - cost) <= 0.005
    assert isinstance(offset_for_cost(Heldout(model, batches), cost), float)
    assert knob != math.inf


@pytest.mark.parametrize("ratio", [0, 4])
def test_static_and_random_meet_the_same_cost(tiny_model, packed_batches, ratio):
    batches = packed_batches(10, 4, 24)
    for method, resolution in (
        (Static(order=(4, 2, 3), count=2, adapter_ratio=ratio), 1.0),
        (Random(first=2, adapter_ratio=ratio), 2**-10),
    ):
        run, text = text_of(convert(tiny_model("llama"), method), batches)
        knob, scores = text.at_cost(run, 0.87, text.search(run, resolution))
        assert abs(scores.summary().cost - 0.87) <= 0.005
        if isinstance(method, Static):
            assert isinstance(knob, KnobMix) and len(scores.layers.unique()) == 2
            in_row = [scores.layers[scores.row == r].unique() for r in scores.row.unique()]
            assert all(len(depth) == 1 for depth in in_row)  # rows take turns, tokens do not


def test_random_routes_differ_between_rows_and_not_between_runs(tiny_model, packed_batches):
    batches = packed_batches(1, 6, 24)
    run, text = text_of(convert(tiny_model("llama"), Random(first=1, rate=0.5)), batches)
    first, again = text.score(run, 0.0), text.score(run, 0.0)
    rows = first.layers.view(6, -1)
    assert len({tuple(row.tolist()) for row in rows}) == 6
    assert first.layers.equal(again.layers) and first.ce.equal(again.ce)
    assert run.heldout.converted.settings.key is None


def test_a_cost_out_of_reach_is_refused(model, packed_batches):
    run, text = text_of(model, packed_batches())
    with pytest.raises(ValueError, match="out of reach"):
        text.at_cost(run, 0.2, text.search(run))
