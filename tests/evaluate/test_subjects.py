"""Rows and the dials they are set to: budgets by the plug-in's curves, baselines by the cost they are to meet."""

from __future__ import annotations

import math

import pytest

from depthdial.core.dial import Curve
from depthdial.engine.dials import Dials
from depthdial.engine.score import Scorer, Text
from depthdial.evaluate.harness.lm import Dial
from depthdial.evaluate.subjects import EARLY_EXIT, Lineup, Row, Setup, identity
from depthdial.methods import method_named
from depthdial.models import save
from depthdial.models.checkpoint import Plugin
from depthdial.models.dial import offset_for
from depthdial.models.fingerprint import fingerprint


@pytest.fixture
def setup(tiny_folder):
    return Setup(str(tiny_folder), "float32", "cpu", max_batch=4)


@pytest.fixture
def baselines(tiny_model, adapted, tmp_path):
    """name -> folder of a random and of a static plug-in with trained-looking adapters."""
    told = {}
    for name, fields in {
        "random": {"first": 2, "adapter_ratio": 4, "rate": 0.5},
        "static": {"order": (3, 1, 4), "count": 2, "adapter_ratio": 4},
    }.items():
        model = adapted(tiny_model("llama"), method_named(name, fields))
        curve = Curve((-3.0, 0.0, 3.0), (0.7, 0.8, 0.95), (0.5, 0.2, 0.0))
        plugin = Plugin(name, model.method, fingerprint(model), {"text": curve, "generated": curve})
        told[name] = str(save(model, tmp_path / name, plugin))
    return told


def subjects(setup, plugin, baselines, budgets, early_exit=True, **fields):
    return Lineup(plugin, budgets, baselines, early_exit, **{"int8": "none", **fields}).subjects(setup)


def dial_of(subject, row, cost):
    return Dial.of(subject.llm.model, subject.knob(row, cost))


def cost_at(subject, dial) -> float:
    """Measured, over places enough for a random rate."""
    scorer = Scorer(subject.llm.engine, subject.llm.tokenizer)
    ((score,),) = scorer.score([[Text([5 + i % 200 for i in range(120)], 1)]], Dials(dial.text))
    return (score.context.cost + score.scored.cost) / (score.context.tokens + score.scored.tokens)


def test_rows_and_dials(setup, tiny_plugin, baselines):
    made = [make() for make in subjects(setup, str(tiny_plugin), baselines, [1.0, 0.9, 0.75], True)]
    assert [subject.name for subject in made] == ["flexidepth", "random", "static", EARLY_EXIT]
    names = [row.name for subject in made for row in subject.rows]
    assert names[:4] == ["base", "flexidepth 0.9", "flexidepth 0.75", "random 0.9"]
    assert names[-1] == "early exit 0.75" and len(set(names)) == len(names) == 9
    adaptive, random, *fixed = made
    base, nine, _ = adaptive.rows
    assert dial_of(adaptive, base, None) == (math.inf, math.inf)
    assert dial_of(adaptive, nine, None) == (offset_for(adaptive.llm.model, 0.9),) * 2
    assert dial_of(random, random.rows[0], 0.8) == (0.0, 0.0)
    assert dial_of(random, random.rows[0], 0.01).text == -3.0, "not below what it can do"
    for subject in fixed:
        row = subject.rows[0]
        costs = [cost_at(subject, dial_of(subject, row, wanted)) for wanted in (0.95, 0.8, 0.6)]
        assert costs == sorted(costs, reverse=True) and costs[0] < 1
        ladder = sorted({round(cost_at(subject, dial_of(subject, row, c / 100)), 9) for c in range(20, 100)})
        for wanted in (0.55, 0.7, 0.77, 0.83):
            nearest = min(ladder, key=lambda cost: abs(cost - wanted))
            assert cost_at(subject, dial_of(subject, row, wanted)) == pytest.approx(nearest), "the nearest step"


def test_early_exit_runs_the_first_layers_alone(setup, tiny_plugin, tiny_model):
    import torch

    *_, make = subjects(setup, str(tiny_plugin), {}, [0.75], True)
    subject = make()
    dial = dial_of(subject, subject.rows[0], 0.6)
    model = tiny_model("llama")
    cut = round(sum(1 for _ in model.model.layers) + dial.text - 1)  # count is 1
    tokens = [5, 9, 40, 41, 200, 7]
    ((score,),) = Scorer(subject.llm.engine, subject.llm.tokenizer).score([[Text(tokens, 1)]], Dials(dial.text))
    model.model.layers = model.model.layers[:cut]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, :-1].log_softmax(-1)
    wanted = float(logits.gather(1, torch.tensor(tokens[1:])[:, None]).sum())
    assert score.logprob == pytest.approx(wanted, abs=1e-4) and 0 < cut < 6
    assert score.context.layers == cut * score.context.tokens


def test_without_a_budget_below_one_there_is_the_base_alone(setup, tiny_plugin):
    (make,) = subjects(setup, None, {"random": "nowhere"}, [1.0], True)
    assert [row.name for row in make().rows] == ["base"]


def test_what_cannot_be(setup, tiny_plugin, tmp_path):
    with pytest.raises(ValueError, match=r"budget 0\.9 needs a plug-in"):
        next(subjects(setup, None, {}, [0.9], True))()
    with pytest.raises(ValueError, match=r"budget 0\.2 is outside"):
        next(subjects(setup, str(tiny_plugin), {}, [0.2], True))()
    with pytest.raises(ValueError, match="is not a plug-in"):
        identity(tmp_path)


def test_a_plug_in_is_known_by_its_contents(tiny_plugin, baselines):
    assert identity(tiny_plugin) == identity(tiny_plugin) != identity(baselines["random"])
    assert Row("early exit 0.9", "baseline", EARLY_EXIT, 0.9).file == "early-exit-0.9"
