"""`depthdial bench` on a tiny model: one table or one JSON object, a file and a picture."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from depthdial.cli.app import app
from depthdial.cli.options import numbers


@pytest.fixture(scope="module")
def options(tiny_folder, tiny_plugin):
    tiny = {"model": tiny_folder, "plugin": tiny_plugin, "dtype": "float32", "device": "cpu", "budgets": "0.8"}
    tiny |= {"batches": "1", "prefill": "16", "prompt-tokens": 6, "new-tokens": 4, "repeats": 1}
    return [word for name, value in tiny.items() for word in (f"--{name}", str(value))] + ["--no-compiled"]


def run(*args: str):
    return CliRunner().invoke(app, ["bench", *args], catch_exceptions=False)


def test_json_is_one_object_and_nothing_else(options):
    result = run(*options, "--json")
    results = json.loads(result.stdout)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert results["what"] == "speed" and {row["regime"] for row in results["rows"]} == {"decode", "prefill"}


def test_the_table_goes_to_stdout_and_the_files_where_they_are_asked_for(options, tmp_path):
    place = tmp_path / "new" / "speed.json"
    result = run(*options, "--output", str(place))
    assert "| adaptive 0.8, fp32 |" in result.stdout and "**prefill 16**" in result.stdout
    for row in ("adaptive, prompt read in full, fp32", "adaptive 0.8, prompt skips too, fp32", "our dense, int8"):
        assert f"| {row} |" in result.stdout
    assert json.loads(place.read_text())["rows"] and place.with_suffix(".png").is_file()
    assert len(list(place.parent.iterdir())) == 2


def test_quick_is_batch_1_and_one_prompt(options, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("depthdial.evaluate.speed.bench.bench", lambda o, *_: calls.append(o) or {"rows": []})
    assert run("--quick", "--json").exit_code == 0
    (quick,) = calls
    assert (quick.batches, quick.prefill, quick.repeats, quick.compiled) == ((1,), (512,), 3, False)


def test_quick_leaves_what_is_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr("depthdial.evaluate.speed.bench.bench", lambda o, *_: calls.append(o) or {"rows": []})
    assert run("--quick", "--json", "--batches", "2", "--prefill", "", "--new-tokens", "9").exit_code == 0
    assert (calls[0].batches, calls[0].prefill, calls[0].new_tokens) == ((2,), (), 9)


def test_quick_fits_into_a_short_context(options):
    """The tiny model's context of 128 has no room for the usual 512."""
    short = [*options[: options.index("--batches")], "--quick", "--json"]
    result = json.loads(run(*short).stdout)
    rows = {(row["regime"], row["prompt_tokens"]) for row in result["rows"]}
    assert rows == {("decode", 32), ("prefill", 127)} and result["arguments"]["prefill"] == [127]


def test_a_text_of_ones_own_is_read(options, tmp_path):
    (tmp_path / "t.txt").write_text("the quick brown fox " * 9)
    result = json.loads(run(*options, "--text", str(tmp_path / "t.txt"), "--json").stdout)
    assert result["arguments"]["text"] == "given" and str(tmp_path) not in json.dumps(result)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--budgets", "much"], "--budgets 'much' is not a list"),
        (["--batches", "1,x"], "--batches"),
        (["--prompt-budget", "1.0,x"], "--prompt-budget 'x' is no number"),
        (["--prompt-budget", "2"], "prompt_budget must be"),
        (["--prompt-budget", ""], "--prompt-budget needs"),
        (["--prompt-budget", "0.01"], "prompt_budget: budget 0.01"),
        (["--budgets", "0.01"], "budget 0.01"),
        (["--peers", "llama"], "'llama' is not known"),
        (["--peers", "tide"], "--peer-python tide=PATH"),
        (["--peer-python", "tide"], "not NAME=PATH"),
        (["--output", "x.txt"], "must end in .json"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--prefill", "4000"], "context is 128"),
        (["--static", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(failed, options, wrong, says):
    assert says in failed("bench", *options, *wrong)


def test_numbers():
    assert numbers("--x", "1, 2,", int) == (1, 2) and numbers("--x", "", int) == ()
