"""Every verb that writes leaves alone what is not its own, says so before it works, and writes over its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from depthdial.cli.app import app
from depthdial.core.lock import locked

FOLDERS = ("train", "pretrain", "evaluate", "map", "export")
FILES = {"bench": "config.json", "report": "report.json", "map summary": "summary.json", "map html": "page.html"}


@pytest.fixture(scope="module")
def commands(tiny_folder: Path, tiny_plugin: Path, tmp_path_factory) -> Callable[[Path], dict[str, list[str]]]:
    """`commands(place)`: each verb's words, its output at `place`."""
    data = tmp_path_factory.mktemp("data") / "text.jsonl"
    data.write_text(
        "".join(json.dumps({"text": f"the quick fox number {i} jumps", "prompt": "the"}) + "\n" for i in range(60))
    )
    model = ["--model", str(tiny_folder)]
    tiny = [*model, "--plugin", str(tiny_plugin), "--dtype", "float32"]
    runs = tmp_path_factory.mktemp("runs")
    small = "--size 2x2@16,ffn=32 --steps 3 --batch 8 --length 16 --heldout 0.1 --gather off --tokenizer train:280"
    pretrain = ["pretrain", "--data", str(data), *small.split(), "--device", "cpu"]
    CliRunner().invoke(app, [*pretrain, "--output", str(runs / "dense")], catch_exceptions=False)
    mapped = tmp_path_factory.mktemp("maps") / "map"
    prompts = data.with_name("prompts.txt")
    prompts.write_text("the quick\nthe fox\n")
    map_ = ["map", "--prompts", str(prompts), *tiny, "--max-new-tokens", "2", "--device", "cpu"]
    CliRunner().invoke(app, [*map_, "--output", str(mapped)], catch_exceptions=False)

    def words(place: Path) -> dict[str, list[str]]:
        out = ["--output", str(place)]
        speed = "--budgets 0.8 --batches 1 --prefill 16 --prompt-tokens 6 --new-tokens 4 --repeats 1 --no-compiled"
        return {
            "train": ["train", "--data", str(data), *model, *out],
            "pretrain": [*pretrain, *out],
            "evaluate": ["evaluate", *tiny, "--tasks", "piqa", *out],
            "map": [*map_, *out],
            "export": ["export", str(place), *tiny],
            "bench": ["bench", *tiny, *speed.split(), *out],
            "report": ["report", str(runs), "--output", str(place.parent)],
            "map summary": ["map", "summary", str(mapped), "--output", str(place.parent)],
            "map html": ["map", "html", str(mapped), *out],
        }

    return words


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_folder_of_something_else(commands, failed, verb: str, tmp_path: Path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("of a model")
    assert "my-model" in failed(*commands(folder)[verb])
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("config.json", "of a model")]
    assert [path.name for path in tmp_path.iterdir()] == ["my-model"]


@pytest.mark.parametrize("verb", ["train", "pretrain", "evaluate"])
def test_a_folder_that_another_run_writes_to(commands, failed, verb: str, tmp_path: Path):
    with locked(tmp_path / "run"):
        assert "another run writes to it" in failed(*commands(tmp_path / "run")[verb])


@pytest.mark.parametrize("verb", FILES)
def test_a_file_of_something_else_and_one_of_its_own(commands, failed, verb: str, tmp_path: Path):
    place = tmp_path / FILES[verb]
    place.write_text('{"of": "a model"}')
    assert f"{place} exists, and this command did not write it" in failed(*commands(place)[verb])
    assert place.read_text() == '{"of": "a model"}' and len(list(tmp_path.iterdir())) == 1
    place.unlink()
    if verb in ("bench", "report", "map summary"):  # pictures go beside it
        picture = tmp_path / {"bench": "config.png", "report": "loss.png", "map summary": "summary.png"}[verb]
        picture.write_text("of a holiday")
        assert f"{picture} exists" in failed(*commands(place)[verb])
        picture.unlink()
    for _ in range(2):
        assert CliRunner().invoke(app, commands(place)[verb], catch_exceptions=False).exit_code == 0
    assert place.stat().st_size > 100
