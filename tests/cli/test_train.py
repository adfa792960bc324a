"""`depthdial train`, then `generate` with what it made; and what it says when it cannot."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from depthdial.cli.app import app


@pytest.fixture(scope="module")
def options(tiny_folder, tmp_path_factory) -> list[str]:
    data = tmp_path_factory.mktemp("data") / "text.jsonl"
    data.write_text("".join(json.dumps({"text": f"the quick fox number {i} jumps"}) + "\n" for i in range(60)))
    small = "--steps 3 --fit-steps 2 --batch 2 --length 32 --heldout-tokens 128 --generated-tokens 64 --budget 0.9"
    return ["--model", str(tiny_folder), "--data", str(data), "--dtype", "float32", *small.split()]


def test_train_then_generate(options, tiny_folder, tmp_path):
    folder = tmp_path / "plugin"
    trained = CliRunner().invoke(
        app,
        ["train", *options, "--output", str(folder), "--set", "weights=hard", "--fixed-input", "--json"],
        catch_exceptions=False,
    )
    assert trained.exit_code == 0
    facts = json.loads(trained.stdout)
    assert facts["method"]["weights"] == "hard" and facts["method"]["fixed_input"] is True
    assert facts["recommended_budget"] == 0.9
    written = CliRunner().invoke(
        app,
        [
            "generate",
            "the quick",
            "--model",
            str(tiny_folder),
            "--plugin",
            str(folder),
            "--max-new-tokens",
            "4",
            "--json",
        ],
        catch_exceptions=False,
    )
    assert len(json.loads(written.stdout)["depths"]) <= 4


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "missing.jsonl"), ("", "empty"), ("no json", "not JSON"), ('{"text": " "}\n', "no text")],
)
def test_bad_data_is_one_line_and_exit_code_2(failed, tiny_folder, tmp_path, content, message):
    data = tmp_path / "missing.jsonl"
    if content is not None:
        data.write_text(content)
    said = failed("train", "--model", str(tiny_folder), "--data", str(data), "--output", str(tmp_path / "out"))
    assert message in said and not (tmp_path / "out" / "method.json").exists()


def test_bad_options_are_one_line_and_exit_code_2(failed, options, tmp_path):
    out = ["--output", str(tmp_path / "out")]
    assert "name=value" in failed("train", *options, *out, "--set", "weights")
    assert "objective" in failed("train", *options, *out, "--objective", "guess")
    assert "weights must be" in failed("train", *options, *out, "--set", "weights=loose")
    assert "no field fixed_input" in failed("train", *options, *out, "--method", "static", "--fixed-input")
    assert "nothing to resume" in failed("train", *options, *out, "--resume")


@pytest.mark.parametrize("verb", ["train", "pretrain"])
def test_strict_stops_at_a_row_that_does_not_fit(options, failed, tmp_path, verb):
    data, out = tmp_path / "rows.csv", str(tmp_path / "out")
    data.write_text("query,response\none,two\nthree,four, five\n" + "one,two\n" * 9)
    words = [*options, "--output", out] if verb == "train" else ["--output", out, "--size", "2x2@32"]
    said = failed(verb, *words, "--data", str(data), "--strict")
    assert f"{data} line 3: it has more cells than the first line has names" in said
