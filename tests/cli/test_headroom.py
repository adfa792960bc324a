"""`depthdial headroom`: a table, JSON, a picture, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from depthdial.cli import main


@pytest.fixture
def told(tiny_folder: Path, tmp_path: Path) -> list[str]:
    rows = [
        {"prompt": f"The quick brown fox jumps over the lazy dog {i} times."} if i % 2 else
        {"prompt": f"Where are the foxes {i}?", "answer": "The quick brown fox jumps over the lazy dog."}
        for i in range(6)
    ]  # fmt: skip
    (tmp_path / "text.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = ["headroom", str(tiny_folder), "--data", str(tmp_path / "text.jsonl"), "--tokens", "100", "--length", "50"]
    return [*given, "--device", "cpu", "--budgets", "0.8"]


def test_a_table_json_and_a_picture(told: list[str], tmp_path: Path, capsys: Any):
    place = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main([*told, "--output", str(place)])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "At true cost 0.8 expect at best" in text and (place / "results.md").read_text() == text
    assert (place / "results.png").stat().st_size > 10_000
    assert not (
        set("template") & {line.split("|")[1].strip() for line in text.splitlines() if "%" in line and "|" in line}
    )
    with pytest.raises(SystemExit):
        main([*told, "--output", str(place), "--resume", "--json"])
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((place / "results.json").read_text())
    assert results["rows"] > 1 and results["arguments"]["data"] == "text.jsonl"


def test_bad_input_is_one_line(told: list[str], tmp_path: Path, failed: Any, tiny_folder: Path):
    assert "not a list of numbers" in failed(*told, "--budgets", "much")
    assert "no such file or folder" in failed("headroom", str(tmp_path / "none"))
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert "bad.jsonl, line 1 has no `prompt`" in failed(*told, "--data", str(tmp_path / "bad.jsonl"))
    assert "fewer than 64 tokens" in failed(*told, "--tokens", "50")
