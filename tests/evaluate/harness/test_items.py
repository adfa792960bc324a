"""A task at one setting: scores as the harness's own `evaluate` gives them for its own model, item by item."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from depthdial.core.whole import plain
from depthdial.evaluate.harness.data import DataFolder
from depthdial.evaluate.harness.items import TaskRecord, _chance, _primary, measure_task
from depthdial.evaluate.harness.lm import DepthLM
from depthdial.evaluate.harness.setting import Setting, TaskDials
from depthdial.evaluate.harness.tasks import load_suites
from depthdial.evaluate.store import Store

BASE = Setting.alike(TaskDials())
SHOWN = {
    "arc_easy": "acc_norm",
    "winogrande": "acc",
    "lambada_openai": "acc",
    "wikitext": "word_perplexity",
    "coqa": "f1",
}


@pytest.fixture
def suites(data_folder):
    return load_suites(list(SHOWN), DataFolder(data_folder))


def test_scores_are_those_of_the_harness(suites, tiny_llm, tiny_model, tiny_tokenizer):
    model = tiny_model("llama", max_position_embeddings=1024)
    hf = HFLM(pretrained=model, tokenizer=tiny_tokenizer, backend="causal", batch_size=4, device="cpu")  # pyright: ignore[reportCallIssue]
    lm = DepthLM(tiny_llm(plugged=False))
    for suite in suites:
        record = measure_task(suite, lm, BASE, Store(), None)
        facts = evaluate(lm=hf, task_dict={"tasks": suite.parts, "groups": {}}, bootstrap_iters=2)
        expected = facts["results"][suite.name]  # pyright: ignore
        assert record.metric == SHOWN[suite.name]
        assert record.score == pytest.approx(expected[f"{record.metric},none"], rel=1e-3)
        if record.kind == "mean":
            assert record.stderr == pytest.approx(expected[f"{record.metric}_stderr,none"])
        for metric, value in record.scores[suite.name].items():
            assert value == pytest.approx(expected[metric], rel=1e-3)
        assert record.prompt_cost == 1 and record.prompt.layers == 6 * record.prompt.tokens > 0
        assert (record.cost == 1 or not record.answer.tokens) and record.dense_share == 1 and record.tokens


def test_a_limit_takes_the_first_items(data_folder, tiny_llm):
    lm = DepthLM(tiny_llm(plugged=False))
    (suite,) = load_suites(["arc_easy"], DataFolder(data_folder))
    whole, short = (measure_task(suite, lm, BASE, Store(), limit) for limit in (None, 3))
    assert short.values == whole.values[:3] and len(whole.values) == 7
    (cut,) = load_suites(["arc_easy"], DataFolder(data_folder, 3))
    again = measure_task(cut, lm, BASE, Store(), 3)
    assert again.values == short.values and cut.digest(3) == suite.digest(3)
    assert measure_task(suite, lm, BASE, Store(), 0.5).values == whole.values[:4], "half of seven, rounded up"


def test_chance_is_one_of_the_choices(suites, tiny_llm):
    lm = DepthLM(tiny_llm(plugged=False))
    chances = {suite.name: measure_task(suite, lm, BASE, Store(), 2).chance for suite in suites}
    assert chances == {"arc_easy": 0.25, "winogrande": 0.5, "lambada_openai": 0, "wikitext": 0, "coqa": 0}


def test_all_rows_see_the_same_examples(data_folder, tiny_llm, monkeypatch):
    """The harness's sampler goes on where it stopped: without a new seed the second row has other prompts."""
    lm = DepthLM(tiny_llm(plugged=False))
    (suite,) = load_suites(["gsm8k"], DataFolder(data_folder), fewshot=3)
    for task in suite.parts.values():
        task.set_config("generation_kwargs", {"until": ["Question:"], "max_gen_toks": 4})
    request: list[list[str]] = []
    generate = lm.generate_until
    monkeypatch.setattr(lm, "generate_until", lambda told: request.append([r.args[0] for r in told]) or generate(told))
    for _ in range(2):
        measure_task(suite, lm, BASE, Store(), None)
    assert request[0] == request[1] and len(set(request[0])) == 3


def test_a_group_is_told_by_a_metric_of_all_its_parts():
    one = [{"filter": "none", "metrics": ["acc_norm", "acc"]}]
    other = [{"filter": "none", "metrics": ["mcc", "acc"]}]
    assert _primary({"a": one, "b": other}) == ("acc", "none") and _primary({"a": one}) == ("acc_norm", "none")


def test_chance_is_not_known_where_a_choice_is_more_or_less_right():
    samples = [{"acc": 0.3, "filtered_resps": [0, 0, 0]}, {"acc": 0.7, "filtered_resps": [0, 0]}]
    assert math.isnan(_chance("multiple_choice", "acc", samples))
    assert _chance("multiple_choice", "acc", [{**s, "acc": 1.0} for s in samples]) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_filters_and_programs(data_folder, tiny_llm):
    lm = DepthLM(tiny_llm(plugged=False))
    maths, code = load_suites(["gsm8k", "humaneval"], DataFolder(data_folder), fewshot=1, run_code=True)
    for task in maths.parts.values():
        task.set_config("generation_kwargs", {"until": ["Question:"], "max_gen_toks": 8})
    for task in code.parts.values():
        task.set_config("generation_kwargs", {"until": ["\ndef"], "max_gen_toks": 8})
    record = measure_task(maths, lm, BASE, Store(), None)
    assert record.metric == "exact_match, strict-match" and record.values == [0.0] * 3
    assert set(record.scores["gsm8k"]) >= {"exact_match,strict-match", "exact_match,flexible-extract"}
    record = measure_task(code, lm, BASE, Store(), None, run_code=True)
    assert record.metric.startswith("pass@1") and record.values == [0.0] * 2 and record.kind == "mean"


def test_a_record_comes_back_from_json(suites, tiny_llm):
    import json

    record = measure_task(suites[3], DepthLM(tiny_llm(plugged=False)), BASE, Store(), None)
    assert TaskRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    score = math.exp(-np.sum([v[0] for v in record.values]) / np.sum([v[1] for v in record.values]))
    assert record.kind == "perplexity" and record.score == pytest.approx(score) and record.stderr > 0
    unknown = dataclasses.replace(record, chance=math.nan)
    assert math.isnan(TaskRecord.from_json(plain(unknown.to_json())).chance)
