"""The examples, run as they stand on a tiny model: what comes out is a plug-in with a dial."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import depthdial
from depthdial.models.checkpoint import read

FOLDER = Path(__file__).parents[2] / "examples"
SIZE = ["--steps", "6", "--length", "32", "--alpha", "0.05"]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(base: Path, folder: Path) -> None:
    """It loads by its folder, was trained, and its dial turns."""
    plugin = read(folder)
    curve = plugin.curves["text"]
    middle = (curve.floor + min(1.0, curve.costs[-1])) / 2
    model: Any = depthdial.load(str(base), str(folder), middle, "float32", "cpu")[0]
    ids = torch.randint(3, 300, (2, 40))
    costs = []
    for budget in (curve.floor, middle, 1.0):
        depthdial.set_budget(model, budget)
        with torch.no_grad():
            model(ids)
        costs.append(model.route.cost())
    assert costs == sorted(costs) and costs[0] < costs[-1] == 1.0


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "tale.txt").write_text("The quick brown fox jumps over the lazy dog, and the other foxes sleep. " * 40)
    return tmp_path / "tale.txt"


@pytest.mark.parametrize("name", ["own_loop", "hf_trainer"])
def test_a_plain_text_becomes_a_plugin(name: str, text: Path, tiny_folder: Path, tmp_path: Path, capsys: Any):
    folder = tmp_path / "plugin"
    example(name).main(["--model", str(tiny_folder), "--text", str(text), "--output", str(folder), *SIZE])
    assert "budgets from 0." in capsys.readouterr().out
    check(tiny_folder, folder)


def test_conversations_become_a_plugin_by_trl(tiny_folder: Path, tmp_path: Path):
    pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{i} and {i}?"}],
            "completion": [{"role": "assistant", "content": f"{2 * i}"}],
        }
        for i in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "plugin"
    words = ["--model", str(tiny_folder), "--data", str(tmp_path / "chats.jsonl"), "--output", str(folder)]
    example("trl_sft").main([*words, *SIZE])
    check(tiny_folder, folder)
