"""What cannot end well is refused from the model's configuration alone: no weights, no data, no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from depthdial.train.config import TrainConfig
from depthdial.train.run import train

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that has all names and no content: whoever reads weights, tokenizer or data fails otherwise."""
    place = tmp_path / "model"
    place.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (place / name).write_text("not to be read")
    return place


def _refusal(folder: Path, config: PretrainedConfig, tmp_path: Path, **change: Any) -> str:
    config.save_pretrained(folder)
    settings: dict[str, Any] = {"data": (str(tmp_path / "no-such-data.jsonl"),), "device": "cpu", **change}
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        train(TrainConfig(model=str(folder), output=str(tmp_path / "out"), **settings))
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_family_that_is_not_known(folder: Path, tmp_path: Path) -> None:
    assert "'gpt2' cannot be converted yet" in _refusal(folder, GPT2Config(), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_parameters": {**DYNAMIC, "rope_type": "spiral"}}, "rope type 'spiral'"),
        ({"hidden_act": "relu6"}, "activation 'relu6'"),
    ],
    ids=str,
)
def test_a_model_that_the_engine_cannot_run(folder: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    assert words in _refusal(folder, LlamaConfig(**{**SIZES, **change}), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0.2}, "this method's floor on this model is"),
        ({"budget": 0.9, "lowest": 0.1}, "this method's floor on this model is"),
        ({"budget": 0.3, "method": "static"}, "this method's floor on this model is"),
        ({"budget": 0.2, "method": "random"}, "this method's floor on this model is"),
        ({"fields": {"first": 9}}, "do not fit a model of 4 layers"),
    ],
    ids=str,
)
def test_budgets_and_layers_that_cannot_be(folder: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    assert words in _refusal(folder, LlamaConfig(**SIZES), tmp_path, **change)


def test_a_run_that_can_end_well_goes_on_to_its_files(folder: Path, tmp_path: Path) -> None:
    message = _refusal(folder, LlamaConfig(**SIZES), tmp_path, budget=0.9)
    assert "tokenizer" in message or "data" in message
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
