"""Tasks found by name, loaded with our data; what is put in place for them, and taken away again."""

from __future__ import annotations

import math
import sys
from typing import Any
from unittest import mock

import datasets
import pytest
from lm_eval.tasks import TaskManager

from depthdial.evaluate.harness import squad
from depthdial.evaluate.harness.data import DataFolder
from depthdial.evaluate.harness.tasks import Suite, _common_metric, _manager, load_suites

OFFLINE = {
    "hellaswag": 6, "winogrande": 4, "gsm8k": 3, "coqa": 5, "arc_easy": 7, "arc_challenge": 5, "piqa": 9, "boolq": 4,
    "lambada_openai": 5, "openbookqa": 7, "wikitext": 2, "mmlu_anatomy": 4,
}  # fmt: skip


def test_every_offline_task_is_the_harness_own(data_folder):
    suites = load_suites(list(OFFLINE), DataFolder(data_folder))
    assert {suite.name: len(next(iter(suite.parts.values())).eval_docs) for suite in suites} == OFFLINE
    tasks: dict[str, Any] = {suite.name: suite.parts[suite.name] for suite in suites}
    assert tasks["gsm8k"].get_config("num_fewshot") == 5 and tasks["piqa"].get_config("num_fewshot") == 0
    doc = tasks["arc_easy"].eval_docs[0]
    assert tasks["arc_easy"].doc_to_text(doc) == f"Question: {doc['question']}\nAnswer:"
    story = tasks["coqa"].eval_docs[0]
    assert (
        tasks["coqa"].process_results(story, [" The fox!"])["f1"] > tasks["coqa"].process_results(story, ["no"])["f1"]
    )
    assert tasks["boolq"].doc_to_target(tasks["boolq"].eval_docs[1]) == 1


def test_programs_run_in_the_sandbox_when_that_is_allowed(data_folder):
    with pytest.raises(ValueError, match="--allow-code-execution"):
        load_suites(["humaneval"], DataFolder(data_folder))
    (suite,) = load_suites(["humaneval"], DataFolder(data_folder), run_code=True)
    task = suite.parts["humaneval"]
    doc = task.eval_docs[0]
    right, wrong = [["def f(x):\n    return x"]], [["import os\nos.fork()"]]
    assert task.process_results(doc, right) == {"pass@1": 1.0}
    assert task.process_results(doc, wrong) == {"pass@1": 0.0}
    for run_code in (False, True):
        with pytest.raises(ValueError, match="by a runner of its own"):
            load_suites(["cruxeval_output"], DataFolder(data_folder), run_code=run_code)


def test_nothing_stays_changed(data_folder):
    before = datasets.load_dataset
    load_suites(["coqa"], DataFolder(data_folder))
    assert datasets.load_dataset is before
    assert sys.modules.get("transformers.data.metrics.squad_metrics") is not squad


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["piqa", "piqa"], "names a task twice"),
        ([], "names no task"),
    ],
)
def test_names_that_are_none(data_folder, names, says):
    with pytest.raises(ValueError, match=says):
        load_suites(names, DataFolder(data_folder))


def test_data_that_are_nowhere(data_folder, monkeypatch):
    def no_hub(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", no_hub)
    with pytest.raises(ValueError, match=r"task race needs the data set .*race: the data folder knows no file of it"):
        load_suites(["race"], DataFolder(data_folder))
    with pytest.raises(ValueError, match="no --data-dir was given"):
        load_suites(["piqa"])
    (data_folder / "eval" / "piqa_val.jsonl.gz").unlink()
    with pytest.raises(ValueError, match="no file for baber/piqa"):
        load_suites(["piqa"], DataFolder(data_folder))


def test_examples_need_a_training_split(data_folder):
    with pytest.raises(ValueError, match="task piqa shows 3 examples"):
        load_suites(["piqa"], DataFolder(data_folder), fewshot=3)
    (data_folder / "eval" / "gsm8k_train.jsonl.gz").unlink()
    with pytest.raises(ValueError, match="task gsm8k shows 5 examples"):
        load_suites(["gsm8k"], DataFolder(data_folder))
    with pytest.raises(ValueError, match=r"task mmlu_anatomy shows 2 examples, and the data have 1: .*--fewshot 1"):
        load_suites(["mmlu_anatomy"], DataFolder(data_folder), fewshot=2)
    assert load_suites(["gsm8k"], DataFolder(data_folder), fewshot=0)[0].parts["gsm8k"].get_config("num_fewshot") == 0


def test_values_that_no_prompt_can_be_made_of(data_folder, write_rows):
    file = data_folder / "eval" / "winogrande_xl_val.jsonl.gz"
    row = {"sentence": "the fox saw the dog so _ jumps over", "option1": "the fox", "option2": "the dog"}
    write_rows(file, [{**row, "answer": "1"}, {**row, "answer": ""}])
    with pytest.raises(ValueError, match="winogrande"):
        load_suites(["winogrande"], DataFolder(data_folder))[0].check(None)


def test_another_split_than_the_one_that_is_evaluated(data_folder, write_rows):
    rows = [{"question_stem": "the fox", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}]
    write_rows(data_folder / "eval" / "openbookqa_val.jsonl.gz", rows)
    (data_folder / "eval" / "openbookqa_test.jsonl.gz").unlink()
    with pytest.raises(ValueError, match="openbookqa cannot be loaded"):
        load_suites(["openbookqa"], DataFolder(data_folder))


def test_a_package_that_is_missing(data_folder, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'langdetect'")

    monkeypatch.setattr(TaskManager, "load", missing)
    with pytest.raises(ValueError, match=r"needs a package that is not here: .*langdetect"):
        load_suites(["piqa"], DataFolder(data_folder))


def test_a_digest_tells_examples_apart(data_folder, write_rows):
    def digest():
        return load_suites(["gsm8k"], DataFolder(data_folder), fewshot=2)[0].digest(None)

    first = digest()
    write_rows(
        data_folder / "eval" / "gsm8k_train.jsonl.gz", [{"question": f"{i}?", "answer": "#### 1"} for i in range(9)]
    )
    assert digest() != first


def test_a_group_without_a_common_metric(data_folder):
    def part(*metrics):
        return mock.Mock(aggregation=lambda: dict.fromkeys(metrics))

    _common_metric("glue", {"a": part("acc", "f1"), "b": part("acc")})
    with pytest.raises(ValueError, match="parts of glue have no metric in common; name them one by one: a, b"):
        _common_metric("glue", {"a": part("mcc"), "b": part("acc")})


def test_a_limit_is_spread_over_the_parts():
    suite = Suite("mmlu", dict.fromkeys("abc"))  # pyright: ignore[reportArgumentType]
    assert suite.limit(None) is None and suite.limit(200) == 67 and suite.limit(1) == 1
    assert suite.limit(0.5) == 0.5, "the share of a whole is that of its parts"


def test_a_digest_tells_items_apart(data_folder, write_rows, piqa):
    def digest(limit):
        return load_suites(["piqa"], DataFolder(data_folder))[0].digest(limit)

    first, short = digest(None), digest(3)
    assert first == digest(None) and first != short
    piqa[5]["goal"] = "another"
    write_rows(data_folder / "eval" / "piqa_val.jsonl.gz", piqa)
    assert digest(None) != first and digest(3) == short
    assert digest(0.5) == digest(math.ceil(len(piqa) / 2)) != digest(0.999)


@pytest.mark.slow
def test_names_that_the_harness_does_not_have(data_folder):
    with pytest.raises(ValueError, match="no task 'hellaswga'; did you mean hellaswag"):
        load_suites(["hellaswga", "piqa"], DataFolder(data_folder))
    assert list(load_suites(["ai2_arc"], DataFolder(data_folder))[0].parts) == ["arc_challenge", "arc_easy"]


@pytest.mark.slow
def test_the_quick_look_finds_what_the_harness_finds():
    every, quick = TaskManager(), _manager(["mmlu", "arc_challenge"])
    assert {"mmlu", "mmlu_anatomy", "arc_easy"} <= set(quick.all_tasks)
    for name in quick.all_tasks:
        assert quick.task_index[name].yaml_path == every.task_index[name].yaml_path
