"""`depthdial export`: a folder for vLLM, a folder with a card for the hub, and one-line refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from depthdial.cli import main
from depthdial.models.converted import converted_of


def run(*args: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", *args])
    assert caught.value.code == 0


def test_a_folder_for_vllm(tiny_folder: Path, tiny_plugin: Path, tmp_path: Path, capsys: Any):
    place = tmp_path / "out"
    run("--model", str(tiny_folder), "--plugin", str(tiny_plugin), str(place), "--budget", "0.7", "--json")
    facts = json.loads(capsys.readouterr().out)
    config = json.loads((place / "config.json").read_text())
    assert facts["folder"] == str(place) and facts["budget"] == config["budget"] == 0.7
    assert config["architectures"] == ["DepthdialLlama"] and config["model_type"] == "depthdial_llama"
    assert facts["bytes"] == sum(file.stat().st_size for file in place.iterdir())
    opened: Any = AutoModelForCausalLM.from_pretrained(place)
    assert converted_of(opened).settings.offset == -2.0 and opened.dtype == torch.bfloat16


@pytest.mark.parametrize(("told", "kept"), [(None, 1.0), ("same", "same"), ("0.7", 0.7)])
def test_how_prompts_are_read_is_kept(
    told: str | None, kept: Any, tiny_folder: Path, tiny_plugin: Path, tmp_path: Path, capsys: Any
):
    place, given = tmp_path / "out", [] if told is None else ["--prompt-budget", told]
    run("--model", str(tiny_folder), "--plugin", str(tiny_plugin), str(place), "--json", *given)
    facts = json.loads(capsys.readouterr().out)
    assert facts["prompt_budget"] == kept == json.loads((place / "config.json").read_text())["prompt_budget"]
    opened: Any = AutoModelForCausalLM.from_pretrained(place)
    assert converted_of(opened).settings.read_offset == {1.0: math.inf, "same": None, 0.7: -2.0}[kept]


def test_a_folder_for_the_hub(tiny_folder: Path, tiny_plugin: Path, tmp_path: Path):
    place = tmp_path / "mine"
    given = ["--model", str(tiny_folder), "--plugin", str(tiny_plugin), str(place)]
    run(*given, "--format", "hf")
    card = (place / "README.md").read_text()
    assert "| +2.00 | 0.950 | 0.0500 |" in card and "4 of 6 layers (FlexiDepth)" in card, "figures as measured"
    assert "at a true cost of 0.8 of dense" in card and "license" not in card, "nobody told the licence"
    config = json.loads((place / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_depthdial.DepthdialLlama"
    remote: Any = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    assert type(remote).__name__ == "DepthdialLlama" and converted_of(remote).settings.offset == 0.0


def test_bad_input_is_one_line(tiny_folder: Path, tiny_plugin: Path, tmp_path: Path, failed: Any, monkeypatch: Any):
    given = ["export", "--model", str(tiny_folder), "--plugin", str(tiny_plugin), str(tmp_path / "out")]
    assert "is outside what this plug-in can do" in failed(*given, "--budget", "0.1")
    assert "--push-to needs --format hf" in failed(*given, "--push-to", "me/mine")
    assert "prompt_budget: budget 0.1 is outside" in failed(*given, "--prompt-budget", "0.1")
    assert "--prompt-budget 'much' is no number" in failed(*given, "--prompt-budget", "much")
    assert not (tmp_path / "out").exists()
    assert "cannot be a hub repository" in failed(*given, "--format", "hf", "--push-to", "a/b/c")
    assert "is not an empty folder" in failed(*given)
