"""`depthdial testbed`: what it says when it cannot, and a run that learns a hop, from words to a table."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from depthdial.cli.app import app

WORDS = "--size 2x2@32 --hops 2 --entities 7 --rows 16 --settle 20 --steps 4 --texts 16 --seeds 0 --no-plots"
TINY = WORDS.split()


def test_what_cannot_be_run_is_one_line(failed, tmp_path: Path):
    place = ["testbed", "--output", str(tmp_path / "run")]
    assert failed(*place, "--task", "sums") == "unknown task 'sums'; choose one of hop, compose, mixture"
    assert "9 hops go beyond the vocabulary" in failed(*place, "--hops", "9")
    assert "unknown method 'lora' of the testbed" in failed(*place, "--methods", "lora")
    assert "--seeds '0,x' is not a list of numbers" in failed(*place, "--seeds", "0,x")
    assert "nothing to resume" in failed(*place, "--resume")
    assert "has not learned hop" in failed(*place, *TINY, "--patience", "2")


def test_a_run_and_its_report(tmp_path: Path):
    run = [
        "testbed",
        "--output",
        str(tmp_path / "run"),
        *TINY,
        "--patience",
        "200",
        "--methods",
        "static frozen,readout",
    ]
    done = CliRunner().invoke(app, [*run, "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and list(told["methods"]) == ["static frozen", "readout"]
    assert told["dense"]["1"]["accuracy"]["1"]["mean"] > 0.5, "a layer learns a hop"
    again = CliRunner().invoke(
        app, ["report", str(tmp_path / "run"), "--output", str(tmp_path / "report"), "--no-plots"]
    )
    assert again.exit_code == 0 and "| need" in again.stdout and "readout" in again.stdout
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == told
    two = CliRunner().invoke(
        app, ["report", str(tmp_path / "run"), str(tmp_path / "run"), "--output", str(tmp_path / "x")]
    )
    assert two.exit_code != 0
