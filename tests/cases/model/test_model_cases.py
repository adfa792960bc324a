"""Model folders that people have: read as they are meant, or one line before work starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from depthdial.cli.app import main
from depthdial.models.base import load_base
from depthdial.train.config import TrainConfig
from depthdial.train.run import train

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny folder under another name in each test: what is said once is said of it."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def _refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        load_base(str(folder), dtype="float32", device="cpu")
    return str(caught.value)


def _opened(folder: Path) -> PreTrainedModel:
    return load_base(str(folder), dtype="float32", device="cpu")[0]


def _change(folder: Path, name: str, change: Callable[[torch.Tensor], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors[name])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# ---------------------------------------------------------------- weights that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_are_not_finite_are_named(copied: Path, name: str, value: float) -> None:
    _change(copied, name, lambda tensor: tensor[3].fill_(value))
    assert f"{name} is not finite" in _refusal(copied)


def test_generating_and_training_on_them_say_the_same(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _change(copied, "model.norm.weight", lambda tensor: tensor[:1].fill_(float("nan")))
    with pytest.raises(SystemExit) as ended:
        main(["generate", "hi", "--model", str(copied), "--plugin", "none", "--dtype", "float32"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == "" and "model.norm.weight is not finite" in said.err
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Row {i} of some."}) + "\n" for i in range(80)))
    config = TrainConfig(model=str(copied), data=(str(rows),), output=str(tmp_path / "out"), device="cpu", budget=0.98)
    with pytest.raises(ValueError, match=r"model\.norm\.weight is not finite"):
        train(config)


# ---------------------------------------------------------------- adapters


def _lora(folder: Path) -> None:
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": "org/base"}))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    halves = {name.format("A"): torch.ones(2, 32), name.format("B"): torch.ones(32, 2)}
    save_file(halves, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def test_an_adapter_beside_the_weights_is_left_out_in_words(
    copied: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _lora(copied)
    model = _opened(copied)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "LoRA adapter" in said and "left out" in said and "merge" in said
    expected = load_file(tiny_folder / WEIGHTS)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())


def test_an_adapter_alone_is_called_that(copied: Path) -> None:
    _lora(copied)
    for name in ("config.json", "generation_config.json", WEIGHTS):
        (copied / name).unlink(missing_ok=True)
    said = _refusal(copied)
    assert "LoRA adapter without its base (org/base)" in said and "merge" in said


def test_a_plugin_is_no_model(tiny_plugin: Path) -> None:
    assert "a plug-in, not a model" in _refusal(tiny_plugin)


# ---------------------------------------------------------------- files that are not themselves


@pytest.mark.parametrize("file", [WEIGHTS, "tokenizer.json", "config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("text", "words"),
    [(POINTER, "pointer of git LFS"), ("<!DOCTYPE html>\n<html></html>", "web page"), ("", "is empty")],
    ids=["lfs", "page", "empty"],
)
def test_what_stands_in_a_files_place_is_called_what_it_is(copied: Path, file: str, text: str, words: str) -> None:
    (copied / file).write_text(text)
    said = _refusal(copied)
    assert file in said and words in said


def test_a_gguf_file_may_be_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text(POINTER)
    assert "pointer of git LFS" in _refusal(tmp_path / "m.gguf")


# ---------------------------------------------------------------- shards


def _sharded(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, places = sorted(tensors), {}
    for number, chosen in enumerate((names[:9], names[9:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(chosen, file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_an_old_file_beside_shards_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (copied / WEIGHTS).read_bytes()
    _sharded(copied)
    _opened(copied)
    assert capsys.readouterr().err == ""
    (copied / WEIGHTS).write_bytes(whole)
    _opened(copied)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and WEIGHTS in said and "shards" in said


def test_a_shard_that_is_not_there_is_named(copied: Path) -> None:
    _sharded(copied)
    (copied / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in _refusal(copied)
    (copied / f"{WEIGHTS}.index.json").write_text("[" * 100_000)
    assert f"{WEIGHTS}.index.json cannot be read" in _refusal(copied)


# ---------------------------------------------------------------- words for what is not used


@pytest.mark.parametrize(
    ("field", "value"), [("repetition_penalty", 1.3), ("no_repeat_ngram_size", 3), ("suppress_tokens", [5])]
)
def test_what_generation_config_asks_for_and_nobody_does_is_said_once(
    copied: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any
) -> None:
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, field: value}))
    _opened(copied)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and field in said and "not used" in said
    _opened(copied)
    assert capsys.readouterr().err == ""


def test_values_that_change_nothing_are_not_spoken_of(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    neutral = {"repetition_penalty": 1.0, "num_beams": 1, "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **neutral}))
    _opened(copied)
    assert capsys.readouterr().err == ""


def test_tokens_that_the_embedding_does_not_have_are_named(
    copied: Path, tiny_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = type(tiny_tokenizer).from_pretrained(copied)
    rows = _opened(copied).config.vocab_size
    room = rows - len(tokenizer)
    tokenizer.add_tokens([f"<more{i}>" for i in range(room + 2)])
    tokenizer.save_pretrained(copied)
    capsys.readouterr()
    _opened(copied)
    said = capsys.readouterr().err
    assert f"2 tokens that its embedding of {rows} rows does not have (<more{room}>, {rows}, is the first)" in said
