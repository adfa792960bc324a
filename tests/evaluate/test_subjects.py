"""Rows and the dials they are set to: budgets by the plug-in's curves, baselines by the cost they are to meet."""

from __future__ import annotations

import dataclasses
import math

import pytest

from depthdial.core.dial import Curve, Dials
from depthdial.engine.score import Scorer, Text
from depthdial.evaluate.harness.setting import Setting
from depthdial.evaluate.subjects import EARLY_EXIT, Lineup, Setup, TableRow, identity
from depthdial.methods import method_named
from depthdial.models import save
from depthdial.models.checkpoint import Plugin
from depthdial.models.converted import converted_of
from depthdial.models.dial import offset_for
from depthdial.models.fingerprint import fingerprint


@pytest.fixture
def setup(tiny_folder):
    return Setup(str(tiny_folder), "float32", "cpu", max_batch=4)


@pytest.fixture
def baselines(tiny_model, adapted, tmp_path):
    """name -> folder of a random and of a static plug-in with trained-looking adapters."""
    facts = {}
    for name, fields in {
        "random": {"first": 2, "adapter_ratio": 4, "rate": 0.5},
        "static": {"order": (3, 1, 4), "count": 2, "adapter_ratio": 4},
    }.items():
        model = adapted(tiny_model("llama"), method_named(name, fields))
        curve = Curve((-3.0, 0.0, 3.0), (0.7, 0.8, 0.95), (0.5, 0.2, 0.0))
        plugin = Plugin(name, converted_of(model).method, fingerprint(model), {"text": curve, "generated": curve})
        facts[name] = str(save(model, tmp_path / name, plugin))
    return facts


def subjects(setup, plugin, baselines, budgets, early_exit=True, **fields):
    return Lineup(plugin, budgets, baselines, early_exit, **{"int8": "none", **fields}).subjects(setup)


def dials_of(subject, row, cost) -> list[Dials]:
    """Of whole texts, in the form of the papers: one, or two that texts take turns between, the higher first."""
    setting = Setting.of(subject, subject.knob(row, cost), "same")
    return list(dict.fromkeys([setting.high.whole, setting.low.whole]))


def cost_at(subject, row, wanted) -> float:
    """Measured, over places enough for a random rate; of two dials by their turns."""
    scorer, costs = Scorer(subject.llm.engine, subject.llm.tokenizer), []
    setting = Setting.of(subject, subject.knob(row, wanted), "same")
    for dials in (setting.high.whole, setting.low.whole):
        ((score,),) = scorer.score([[Text([5 + i % 200 for i in range(120)], 1)]], dials)
        costs.append((score.context.cost + score.scored.cost) / (score.context.tokens + score.scored.tokens))
    return costs[0] * setting.share + costs[1] * (1 - setting.share)


def test_rows_and_dials(setup, tiny_plugin, baselines):
    output = [make() for make in subjects(setup, str(tiny_plugin), baselines, [1.0, 0.9, 0.75], True)]
    assert [subject.name for subject in output] == ["flexidepth", "random", "static", EARLY_EXIT]
    names = [row.name for subject in output for row in subject.rows]
    assert names[:4] == ["base", "flexidepth 0.9", "flexidepth 0.75", "random 0.9"]
    assert names[-1] == "early exit 0.75" and len(set(names)) == len(names) == 9
    adaptive, random, *fixed = output
    base, nine, _ = adaptive.rows
    assert dials_of(adaptive, base, 1.0) == [Dials(math.inf)]
    assert dials_of(adaptive, nine, 0.9) == [Dials(offset_for(adaptive.llm.model, 0.9))]
    assert dials_of(random, random.rows[0], 0.8) == [Dials(0.0)]
    assert dials_of(random, random.rows[0], 0.01) == [Dials(-3.0)], "not below what it can do"
    for subject in fixed:
        row = subject.rows[0]
        for expected in (0.66, 0.7, 0.77, 0.83):
            assert cost_at(subject, row, expected) == pytest.approx(expected, abs=1e-6), "texts take turns"
            assert len(dials_of(subject, row, expected)) == 2
        assert cost_at(subject, row, 0.999) < 0.99, "one layer at least is dropped"
        assert cost_at(subject, row, 0.0) == min(cost_at(subject, row, c / 20) for c in range(20)), "as far as it goes"


def test_early_exit_runs_the_first_layers_alone(setup, tiny_plugin, tiny_model):
    import torch

    *_, make = subjects(setup, str(tiny_plugin), {}, [0.75], True)
    subject = make()
    dials, *_ = dials_of(subject, subject.rows[0], 0.6)
    model = tiny_model("llama")
    cut = round(sum(1 for _ in model.model.layers) + dials.written - 1)  # count is 1
    tokens = [5, 9, 40, 41, 200, 7]
    ((score,),) = Scorer(subject.llm.engine, subject.llm.tokenizer).score([[Text(tokens, 1)]], dials)
    model.model.layers = model.model.layers[:cut]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, :-1].log_softmax(-1)
    expected = float(logits.gather(1, torch.tensor(tokens[1:])[:, None]).sum())
    assert score.logprob == pytest.approx(expected, abs=1e-4) and 0 < cut < 6
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
    assert TableRow("early exit 0.9", "baseline", EARLY_EXIT, 0.9).file == "early-exit-0.9"


def test_rows_in_int8_and_of_parts(setup, tiny_plugin):
    lineup = Lineup(str(tiny_plugin), [1.0, 0.8], {}, False, "all", where=True)
    adaptive, int8 = (make() for make in lineup.subjects(setup))
    assert [(row.name, row.part) for row in adaptive.rows[2:]] == [
        ("prompt only 0.8", "prompt"),
        ("prompt and answer 0.8", "both"),
    ]
    assert [row.name for row in int8.rows] == ["base int8", "plug-in int8 0.8"] and int8.about["weights"] == "int8"
    assert int8.llm.options.weights == "int8" and int8.llm.plugin is not None
    assert [setup.prompt_budget_of(row) for row in int8.rows] == ["same", None], "the base is untouched throughout"


def test_a_method_without_k_and_v_of_skipped_tokens_reads_no_less_than_it_writes(setup, tiny_plugin, baselines):
    _, static = (
        make()
        for make in Lineup(str(tiny_plugin), [0.8], {"static": baselines["static"]}, False, "none").subjects(setup)
    )
    assert static.reading(0.8, 0.7) == "same" and static.reading(0.8, 0.9) == 0.9 and static.reading(0.8, None) is None
    setting = Setting.of(static, static.knob(static.rows[0], 0.7), 0.5)
    assert setting.high.scored.alike, "it would look for what nobody left"
    with pytest.raises(ValueError, match="--where writes in layers that the prompt skipped, and static leaves no K"):
        next(Lineup(baselines["static"], [0.8], {}, where=True).subjects(setup))()


def test_parts_stand_beside_prompts_that_are_read_in_full(setup, tiny_plugin):
    lineup = Lineup(str(tiny_plugin), [0.8], {}, where=True)
    lineup.check(setup)
    with pytest.raises(ValueError, match="leave --prompt-budget out"):
        lineup.check(dataclasses.replace(setup, prompt_budget="same"))
