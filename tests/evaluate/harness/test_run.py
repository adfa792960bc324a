"""A whole evaluation on a tiny model: rows, costs that are met, what is kept, and that ending it changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depthdial.core.dial import Curve
from depthdial.evaluate.harness import run as module
from depthdial.evaluate.harness.run import TaskOptions, run
from depthdial.evaluate.harness.table import tables
from depthdial.evaluate.subjects import Lineup, Setup
from depthdial.models import load, save
from depthdial.models.checkpoint import plugin_of

CLOCKS = {"seconds", "cpu_seconds", "date", "commit"}


@pytest.fixture
def options(tiny_folder, tiny_plugin, data_folder, tmp_path):
    def make(**fields: Any) -> TaskOptions:
        lineup = {"plugin": str(tiny_plugin), "budgets": [1.0, 0.8], "baselines": {}}
        lineup |= {
            name: fields.pop(name) for name in ("budgets", "baselines", "early_exit", "int8", "where") if name in fields
        }
        told = {
            "model": str(tiny_folder),
            "lineup": Lineup(**lineup),
            "tasks": ["arc_easy", "winogrande"],
            "data_dir": data_folder,
            "output": tmp_path / "out",
            "setup": Setup(str(tiny_folder), "float32", "cpu", max_batch=4),
        }
        return TaskOptions(**{**told, **fields})

    return make


def timeless(told: Any) -> Any:
    if isinstance(told, dict):
        return {k: timeless(v) for k, v in told.items() if k not in CLOCKS}
    return [timeless(v) for v in told] if isinstance(told, list) else told


def test_rows_costs_and_files(options, tmp_path):
    results = run(options())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["base", "flexidepth 0.8", "base int8", "early exit 0.8"]
    assert rows["base"]["cost"] == 1 and rows["base"]["layers_prompt"] == 6
    adaptive, early = rows["flexidepth 0.8"], rows["early exit 0.8"]
    assert adaptive["cost"] < 0.99 and adaptive["prompt_cost"] == 1 and adaptive["layers_prompt"] == 6
    for task in ("arc_easy", "winogrande"):
        told = adaptive["tasks"][task]
        assert early["tasks"][task]["cost"] == pytest.approx(told["cost"], abs=0.04), "texts take turns"
        assert 0 < told["dense_share"] < 1 == rows["base"]["tasks"][task]["dense_share"]
    assert rows["base"]["tasks"]["arc_easy"]["items"] == 7 and adaptive["seconds"] > 0
    held = json.loads((tmp_path / "out" / "results.json").read_text())
    assert held == results and held["complete"] and held["machine"]["cores"]
    assert str(tmp_path) not in json.dumps(held), "no place of this machine"
    assert "| early exit 0.8 |" in tables(held) and "nan" not in tables(held)


def test_both_costs_follow_the_prompt_budget(options, tiny_folder):
    found = {}
    for read in (None, 0.75, "same"):
        setup = Setup(str(tiny_folder), "float32", "cpu", max_batch=4, prompt_budget=read)
        results = run(options(setup=setup, output=None, early_exit=False, int8="none", tasks=["arc_easy", "wikitext"]))
        base, own = results["rows"]
        assert base["cost"] == base["prompt_cost"] == 1, "the base is untouched whatever is asked"
        found[read] = own["tasks"]
        assert results["arguments"]["prompt_budget"] == (1.0 if read is None else read)
    full, some, same = (told["arc_easy"] for told in found.values())
    assert full["prompt_cost"] == 1 and some["prompt_cost"] < 0.99 and same["prompt_cost"] < 0.99
    assert some["dense_share"] == same["dense_share"] == 0 < full["dense_share"]
    perplexities = {told["wikitext"]["score"] for told in found.values()}
    assert len(perplexities) == 1 and found[None]["wikitext"]["cost"] < 0.99, "text skips as in the papers, always"


def test_a_baseline_meets_the_cost_that_short_answers_had(options, tiny_folder, tiny_plugin, tmp_path, monkeypatch):
    """Its curve, like any that was measured on long texts, says nothing of the first few tokens of an answer."""
    model, _ = load(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu")
    wrong = Curve((-2.0, 0.0, 2.0), (0.6, 0.7, 0.9), (0.5, 0.2, 0.05))
    own_plugin = plugin_of(model)
    assert own_plugin is not None
    plugin = replace(own_plugin, name="wrong", curves={"text": wrong, "generated": wrong}, recommended=0.8)
    other = save(model, tmp_path / "wrong", plugin)
    tried, real = [], module.meet_cost

    def noted(run: Any, cost: Any, *rest: Any) -> Any:
        return real(run, lambda found: tried.append(cost(found)) or tried[-1], *rest)

    monkeypatch.setattr(module, "meet_cost", noted)
    told = {"tasks": ["arc_easy"], "early_exit": False, "int8": "none", "baselines": {"wrong": str(other)}}
    results = run(options(output=None, **told))
    own, baseline = (row["tasks"]["arc_easy"]["cost"] for row in results["rows"][1:])
    assert 2 <= len(tried) <= 3 and baseline == min(tried, key=lambda cost: abs(cost - own))
    assert abs(tried[0] - own) > 0.08 and abs(baseline - own) < 0.04


def test_where_skipping_hurts(options):
    results = run(options(where=True, output=None, early_exit=False, int8="none", tasks=["arc_easy"]))
    rows = {row["name"]: row for row in results["rows"]}
    own, prompt, both = rows["flexidepth 0.8"], rows["prompt only 0.8"], rows["prompt and answer 0.8"]
    assert (prompt["cost"], own["prompt_cost"]) == (1, 1) and both["cost"] < 0.99
    assert prompt["prompt_cost"] == both["prompt_cost"] < 0.99
    assert "Where skipping hurts" in tables(results)


def test_what_is_done_is_not_done_again_and_more_can_be_added(options, monkeypatch):
    first = run(options())
    measured = []
    real = module.measure_task
    monkeypatch.setattr(module, "measure_task", lambda suite, *rest: measured.append(suite.name) or real(suite, *rest))
    assert timeless(run(options(resume=True))) == timeless(first) and measured == []
    grown = run(options(resume=True, tasks=["arc_easy", "winogrande", "piqa"], early_exit=False))
    assert measured == ["piqa", "piqa", "piqa"]
    assert timeless(grown["rows"][1]["tasks"]["arc_easy"]) == timeless(first["rows"][1]["tasks"]["arc_easy"])
    assert grown["subjects"]["early exit"] == first["subjects"]["early exit"], "not run, but not forgotten"
    assert timeless(run(options(resume=True))) == timeless(first)
    with pytest.raises(ValueError, match="its limit is None, not 3"):
        run(options(resume=True, limit=3))


def test_ended_at_any_chunk_it_comes_to_the_same(options, tmp_path):
    class Ended(BaseException):
        pass

    whole = timeless(run(options(output=tmp_path / "whole")))
    for after in (2, 7, 12):
        told = 0

        def stop(name: str, done: int, total: int, after: int = after) -> None:
            nonlocal told
            told += 1
            if told == after:
                raise Ended

        place = tmp_path / f"ended-{after}"
        with pytest.raises(Ended):
            run(options(output=place), stop)
        assert timeless(run(options(output=place, resume=place.exists()))) == whole


@pytest.mark.slow
def test_killed_it_comes_to_the_same(options, tmp_path, data_folder):
    told = options()
    command = [
        sys.executable, "-m", "depthdial", "evaluate", "--model", told.model, "--plugin", told.lineup.plugin, "--tasks",
        "arc_easy,winogrande,hellaswag,piqa", "--budgets", "0.8", "--data-dir", str(data_folder), "--dtype", "float32",
        "--device", "cpu", "--batch", "4", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    whole = subprocess.run(command, env=environment, capture_output=True, check=True)
    place = tmp_path / "killed"
    command += ["--output", str(place)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list(Path(place).glob("chunks/*.jsonl"))) < 3:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (place / "results.json").exists() or not json.loads((place / "results.json").read_text())["complete"]
    again = subprocess.run([*command, "--resume"], env=environment, capture_output=True, check=True)
    assert timeless(json.loads(again.stdout)) == timeless(json.loads(whole.stdout))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"limit": 0}, "--limit must be at least 1"),
        ({"limit": -0.5}, "--limit must be at least 1 item, or a share"),
        ({"limit": 1.5}, r"not 1\.5"),
        ({"limit": float("nan")}, "not nan"),
        ({"fewshot": -1}, "--fewshot must be at least 0"),
        ({"budgets": [1.2]}, r"not at 1\.2"),
        ({"output": None, "resume": True}, "--resume needs --output"),
        ({"baselines": {"base": "x"}}, "this name is taken"),
        ({"baselines": {"early-exit": "x"}}, "its files would be those of 'early exit'"),
        ({"baselines": {"a b": "x", "a/b": "x"}}, "its files would be those of 'a b'"),
    ],
)
def test_options_that_make_no_sense(options, wrong, says):
    with pytest.raises(ValueError, match=says):
        options(**wrong)


def test_a_baseline_must_not_have_the_plug_ins_name(options, tiny_plugin):
    with pytest.raises(ValueError, match="the plug-in itself has this name"):
        run(options(baselines={"flexidepth": str(tiny_plugin)}))
