"""`depthdial pretrain` and `depthdial report`: from files to a table; and what they say when they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from depthdial.cli.app import app
from depthdial.train.shards import make_shards


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": f"the quick brown fox number {i} jumps over {i % 13} lazy dogs"} for i in range(60)]
    (folder / "fox.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def options(data: Path, tmp_path: Path) -> list[str]:
    small = "--size 2x2@16,ffn=32 --steps 3 --batch 8 --length 16 --heldout 0.1 --gather off --device cpu"
    files = ["--data", str(data / "fox.jsonl"), "--shards", str(data / "shards"), "--tokenizer", "train:280"]
    return [*files, *small.split(), "--output", str(tmp_path / "out")]


def test_pretrain_then_report(options: list[str], data: Path, tmp_path: Path):
    for seed in (0, 1):
        for method, more in (("dense", []), ("skiplayer", ["--density", "0.5", "--field", "alpha=0.2"])):
            where = ["--output", str(tmp_path / f"{method}-seed{seed}"), "--seed", str(seed)]
            done = CliRunner().invoke(
                app, ["pretrain", "--method", method, *options, *more, *where, "--json"], catch_exceptions=False
            )
            facts = json.loads(done.stdout.strip().splitlines()[-1])
            assert done.exit_code == 0 and facts["loss"] > 0 and 0 < facts["density"] <= 1
            assert (
                json.loads((tmp_path / f"{method}-seed{seed}" / "config.json").read_text())["method"]["name"] == method
            )
    told = CliRunner().invoke(
        app, ["report", str(tmp_path), "--output", str(tmp_path / "report")], catch_exceptions=False
    )
    assert told.exit_code == 0 and "| skiplayer | 2x2@16,ffn=32 | 2 |" in told.stdout
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    groups = {g["group"]: g for g in report["groups"]}
    assert report["machine"]["cores"] and report["runs"]["dense-seed1"]["seed"] == 1 and report["baseline"] == "dense"
    assert groups["dense"]["difference"] is None and groups["skiplayer"]["difference_half_width"] > 0
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"report.json", "report.md", "loss.png", "density.png"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--density", "0"], "density 0.0 is out of range"),
        (["--density", "1.01"], "density 1.01 is out of range"),
        (["--size", "12x4"], "cannot be read"),
        (["--size", "2x3@16"], "do not divide the width"),
        (["--batch", "4000"], "less than a batch"),
        (["--tokenizer", "train:290"], "made with another tokenizer"),
        (["--method", "telepathy"], "unknown method"),
        (["--optimizer", "sgd"], "--optimizer must be one of"),
        (["--gather", "maybe"], "--gather must be one of"),
        (["--dtype", "int8"], "--dtype must be one of"),
        (["--field", "density"], "name=value"),
        (["--data", "nowhere.jsonl"], "no such data file"),
        (["--resume"], "nothing to resume"),
        (["--fsdp"], "torchrun"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_line_and_exit_code_2(failed, options: list[str], more: list[str], message: str, tmp_path):
    output = Path(options[3]) / "index.json"
    if not output.is_file():
        make_shards([options[1]], output.parent, "train:280", 0.1)
    assert message in failed("pretrain", *options, *more)
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_finished_run_is_not_overwritten(failed, options: list[str]):
    assert CliRunner().invoke(app, ["pretrain", *options]).exit_code == 0
    assert "add --resume" in failed("pretrain", *options)
    assert "other settings (lr)" in failed("pretrain", *options, "--lr", "0.5", "--resume")


def test_a_report_of_nothing_is_refused(failed, tmp_path: Path):
    assert "no finished run" in failed("report", str(tmp_path), "--output", str(tmp_path / "report"))
