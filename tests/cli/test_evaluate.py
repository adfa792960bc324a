"""`depthdial evaluate` on a tiny model: tables or one JSON object, files, and one line for every mistake."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from depthdial.cli.app import app
from depthdial.cli.evaluate import _plugins

pytest.importorskip("lm_eval")


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    words = ["the fox", "the lazy dog", "jumps over", "foxes"]
    rows = [{"goal": words[i % 4], "sol1": words[i % 3], "sol2": words[(i + 1) % 3], "label": i % 2} for i in range(6)]
    with gzip.open(folder / "piqa_val.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture
def options(tiny_folder, tiny_plugin, data):
    facts = {"model": tiny_folder, "plugin": tiny_plugin, "tasks": "piqa", "budgets": "0.8", "data-dir": data}
    facts |= {"dtype": "float32", "device": "cpu", "batch": 4}
    return [word for name, value in facts.items() for word in (f"--{name}", str(value))]


def run(*args: str):
    return CliRunner().invoke(app, ["evaluate", *args], catch_exceptions=False)


def test_json_is_one_object_and_nothing_else(options):
    result = run(*options, "--json", "--no-early-exit")
    results = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert [row["name"] for row in results["rows"]] == ["base", "flexidepth 0.8", "base int8"] and results["complete"]


def test_a_share_of_the_items(options):
    whole, half, one = (
        json.loads(run(*options, "--json", "--no-early-exit", "--limit", limit).stdout)
        for limit in ("99", "0.5", "1.0")
    )
    counts = [result["rows"][0]["tasks"]["piqa"]["items"] for result in (whole, half, one)]
    assert counts[1] == -(-counts[0] // 2) > 1 == counts[2] and half["arguments"]["limit"] == 0.5


def test_tables_and_files(options, tmp_path):
    place = tmp_path / "new" / "run"
    result = run(*options, "--output", str(place), "--limit", "4")
    assert "| early exit 0.8 |" in result.stdout and "piqa, acc_norm (n = 4)" in result.stdout
    assert (place / "results.md").read_text() == result.stdout
    assert json.loads((place / "results.json").read_text())["complete"] and (place / "results.png").is_file()
    again = run(*options, "--output", str(place), "--limit", "4", "--resume")
    assert again.stdout == result.stdout, "the seconds are those of the run"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--budgets", "much"], "--budgets 'much' is not a list"),
        (["--budgets", "0.2"], "budget 0.2 is outside"),
        (["--budgets", "2"], "not at 2"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--limit", "2.5"], "--limit must be at least 1"),
        (["--limit", "inf"], "--limit must be at least 1"),
        (["--limit", "half"], "--limit 'half' is no number of items"),
        (["--tasks", ""], "names no task"),
        (["--tasks", "boolq"], "has no file for"),
        (["--tasks", "humaneval"], "--allow-code-execution"),
        (["--fewshot", "2"], "task piqa shows 2 examples"),
        (["--data-dir", "nowhere"], "--data-dir nowhere is no folder"),
        (["--plugin", "=x"], "is not NAME=DIR"),
        (["--plugin", "second"], "is a second plug-in"),
        (["--plugin", "random=nowhere"], "nowhere is not a plug-in"),
        (["--resume"], "--resume needs --output"),
        (["--output", "{data}"], "is not empty and holds no evaluation"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(failed, options, data, wrong, says):
    assert says in failed("evaluate", *options, *(word.format(data=data) for word in wrong))


def test_a_run_that_is_there_is_not_overwritten(failed, options, tmp_path):
    place = ["--output", str(tmp_path / "run"), "--no-early-exit"]
    run(*options, *place)
    assert "pass --resume" in failed("evaluate", *options, *place)
    assert "its limit is None, not 2" in failed("evaluate", *options, *place, "--resume", "--limit", "2")


@pytest.fixture
def prompts(tmp_path) -> list[str]:
    file = tmp_path / "prompts.txt"
    file.write_text("the quick fox\nthe lazy dog\nthe other foxes\n")
    return ["--written", str(file), "--max-tokens", "8"]


def test_what_is_written(options, prompts, tmp_path):
    place = tmp_path / "written"
    result = run(*options, *prompts, "--output", str(place), "--limit", "2", "--where", "--int8", "all")
    assert "2 prompts, prompt_budget 1.0, up to 8 tokens" in result.stdout
    for row in ("base int8", "plug-in int8 0.8", "early exit 0.8", "prompt only 0.8", "answer only 0.8"):
        assert f"| {row} |" in result.stdout
    assert (place / "results.md").read_text() == result.stdout and (place / "results.png").is_file()
    assert (place / "results.html").read_text().count("<article") == 2
    again = run(*options, *prompts, "--output", str(place), "--limit", "2", "--where", "--int8", "all", "--resume")
    assert again.stdout == result.stdout
    assert json.loads(run(*options, *prompts, "--json", "--no-early-exit").stdout)["complete"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--written", "nowhere.jsonl"], "nowhere.jsonl: no such file of prompts"),
        (["--limit", "0.5"], "--limit must be a whole number of prompts"),
        (["--max-tokens", "0"], "--max-tokens must be at least 1"),
        (["--max-tokens", "1000"], "give less in --max-tokens"),
        (["--int8", "some"], "--int8 is dense, all or none"),
        (["--budgets", "0.2"], "budget 0.2 is outside"),
    ],
)
def test_mistakes_about_what_is_written(failed, options, prompts, wrong, says):
    assert says in failed("evaluate", *options, *prompts, *wrong)


def test_plug_ins():
    assert _plugins([]) == _plugins(["default"]) == ("default", {})
    assert _plugins(["random=a", "none", "static=b=c"]) == (None, {"random": "a", "static": "b=c"})
    with pytest.raises(ValueError, match="names 'x' twice"):
        _plugins(["x=a", "x=b"])
