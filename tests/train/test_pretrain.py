"""Pre-training on a tiny model: from text files to a folder that opens; resumed bit for bit; stopped by a bad loss."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthdial.methods import METHODS, method_named
from depthdial.train import callbacks, next_token
from depthdial.train.pretrain import _heldout_rows, pretrain
from depthdial.train.pretrain_config import DENSITY_FIELDS, PretrainConfig
from depthdial.train.rows import Rows
from depthdial.train.shards import Index, read_index


def density_of(method: str) -> float | None:
    """A half, for a method that has one."""
    return 0.5 if set(DENSITY_FIELDS) & {field.name for field in dataclasses.fields(METHODS[method])} else None  # pyright: ignore


def from_scratch(method: str) -> bool:
    try:
        PretrainConfig(data=("a",), output="", size="", method=method).chosen_method()
    except ValueError:
        return False
    return True


BY_METHOD = {method: density_of(method) for method in METHODS if from_scratch(method)}
"""All methods that a model can be trained with from its first step, and their densities."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": f"the quick brown fox number {i} jumps over {i * 7 % 13} lazy dogs"} for i in range(60)]
    (folder / "fox.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PretrainConfig(
        data=(str(folder / "fox.jsonl"),), output="", size="2x2@16,ffn=32", tokenizer="train:280", steps=6, batch=16,
        length=16, lr=1e-2, save_every=3, eval_every=2, heldout=0.1, device="cpu", gather="off",
        shards=str(folder / "shards"),
    )  # fmt: skip


def told(config: PretrainConfig, folder: Path, **changes: Any) -> PretrainConfig:
    return dataclasses.replace(config, output=str(folder), **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "mfu")} for line in lines]


@pytest.mark.parametrize("method", BY_METHOD)
def test_a_run_gives_a_model_that_opens_and_says_what_it_executes(config, method: str, tmp_path: Path):
    results = pretrain(told(config, tmp_path, method=method, density=BY_METHOD[method]))
    assert results == json.loads((tmp_path / "results.json").read_text())
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1, "it learns"
    assert [line["step"] for line in metrics(tmp_path) if "heldout_loss" in line] == [2, 4]
    assert len(results["density_per_layer"]) == 2 and results["tokens"] == 6 * 16 * 16
    if not method_named(method).program(2).skips:
        assert results["density"] == 1 and results["layers"] == 2 and results["cost"] >= 1
    else:
        assert 0.1 < results["density"] < 0.95 and results["cost"] < 1.1 and results["target"] in (0.5, None)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the quick brown fox", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model.eval()(ids).logits
    assert logits.shape[-1] == len(tokenizer) and not list(tmp_path.glob(".model-*"))


@pytest.mark.parametrize(("gather", "optimizer"), [("off", "adamw"), ("on", "adafactor")])
def test_an_interrupted_run_resumes_bit_for_bit(config, gather: Any, optimizer: Any, tmp_path: Path, monkeypatch: Any):
    changes = {"gather": gather, "optimizer": optimizer, "method": "skiplayer", "batch": 8, "accumulate": 2}
    whole, torn = (told(config, tmp_path / name, **changes) for name in ("whole", "torn"))
    pretrain(whole)
    step_end = callbacks.Report.on_step_end

    def interrupt(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Report, "on_step_end", interrupt)
        with pytest.raises(callbacks.InterruptedRun, match=r"step 4 of 6.*--resume"):
            pretrain(torn)
    assert not (tmp_path / "torn" / "results.json").exists()
    with pytest.raises(ValueError, match="add --resume"):
        pretrain(torn)
    with pytest.raises(ValueError, match=r"other settings \(lr\)"):
        pretrain(dataclasses.replace(torn, lr=0.5), resume=True)
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0}\n{"st')  # what a crash may leave
    pretrain(torn, resume=True)
    assert metrics(tmp_path / "torn") == metrics(tmp_path / "whole")
    one, other = (weights(tmp_path / name) for name in ("whole", "torn"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("size", [100, 5_000, 20_000, 40_000])
def test_a_full_disk_is_one_line_and_can_be_begun_again(config, size: int, tmp_path: Path, room):
    """In the settings, the tokenizer, the weights or the optimizer's state: their writers fail in ways of their own."""
    small = told(config, tmp_path, shards=None)
    with room(size), pytest.raises(OSError, match=r"free some space for .* and start again") as caught:
        pretrain(small)
    assert "\n" not in str(caught.value) and not list((tmp_path / "checkpoints").glob("*"))
    pretrain(small)
    assert (tmp_path / "results.json").is_file()


def test_a_run_goes_on_from_the_older_checkpoint_where_the_newest_is_damaged(config, tmp_path: Path):
    pretrain(told(config, tmp_path))
    before = weights(tmp_path)
    file = tmp_path / "checkpoints" / "checkpoint-6" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    pretrain(told(config, tmp_path), resume=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path).items())


def test_a_folder_of_another_model_is_left_alone(config, tiny_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "my-model"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match=r"my-model holds .* --output"):
        pretrain(told(config, folder))
    with pytest.raises(ValueError, match=r"my-model holds .* --shards"):
        pretrain(told(config, tmp_path / "run", shards=str(folder)))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_finished_run_can_be_measured_and_saved_again(config, tmp_path: Path):
    first = pretrain(told(config, tmp_path))
    before = weights(tmp_path)
    for name in ("results.json", "model.safetensors"):
        (tmp_path / name).unlink()
    again = pretrain(told(config, tmp_path), resume=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path).items())
    assert {k: again[k] for k in ("loss", "density", "train_loss")} == {
        k: first[k] for k in ("loss", "density", "train_loss")
    }


def test_a_loss_that_is_no_number_stops_at_its_step_and_leaves_a_good_checkpoint(config, tmp_path: Path, monkeypatch):
    losses = next_token.token_losses
    calls = []

    def bad(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        result = losses(logits, labels)
        return result * torch.nan if len(calls) == 5 else result

    monkeypatch.setattr(next_token, "token_losses", bad)
    with pytest.raises(ValueError, match=r"the loss is nan at step 5; the last checkpoint is good"):
        pretrain(told(config, tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-3"]
    state = load_file(tmp_path / "checkpoints" / "checkpoint-3" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    pretrain(told(config, tmp_path), resume=True)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_seeds_differ_and_share_what_is_held_out(config, tmp_path: Path):
    first, second = (pretrain(told(config, tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert first["loss"] != second["loss"]
    content = [held_out(told(config, tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    assert content[0] == content[1] and len(content[0]) > 4


def opened(config: PretrainConfig) -> tuple[Path, Index]:
    index = read_index(Path(str(config.shards)))
    assert index is not None
    return Path(str(config.shards)), index


def ids(rows: Rows) -> list[list[int]]:
    return [rows[i]["input_ids"].tolist() for i in range(len(rows))]


def held_out(config: PretrainConfig) -> list[list[int]]:
    places, index = opened(config)
    return ids(_heldout_rows(places, index, config, Rows(places, index, "train", config.length, seed=config.seed)))


def test_held_out_rows_are_mixed(config, tmp_path: Path):
    """Of several files, a part of the rows speaks for all; each row is there once."""
    pretrain(told(config, tmp_path))
    result, straight = held_out(config), ids(Rows(*opened(config), "heldout", config.length))
    assert result != straight and sorted(result) == sorted(straight)


def test_a_run_goes_on_with_its_own_tokens_and_precision(config, tmp_path: Path):
    pretrain(told(config, tmp_path, dtype="float32"))
    file = tmp_path / "pretrain.json"
    start = json.loads(file.read_text())
    for change, message in (({"tokenizer_sha": "other"}, "another tokenizer"), ({"bf16": True}, "another precision")):
        file.write_text(json.dumps({**start, **change}))
        with pytest.raises(ValueError, match=message):
            pretrain(told(config, tmp_path, dtype="float32"), resume=True)


def test_a_model_that_diverged_is_not_written(config, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("depthdial.train.pretrain.measure_heldout", lambda *_: {"loss": float("nan")})
    with pytest.raises(ValueError, match="the held-out loss is nan after step 6"):
        pretrain(told(config, tmp_path, eval_every=100))
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("method", BY_METHOD)
def test_bf16_and_gathering_as_measured(config, method: str, tmp_path: Path):
    changes = {"dtype": "bfloat16", "gather": "auto", "method": method, "density": BY_METHOD[method]}
    results = pretrain(told(config, tmp_path, **changes))
    assert results["loss"] < metrics(tmp_path)[0]["loss"] and all(
        w.dtype == torch.float32 for w in weights(tmp_path).values()
    )
    assert json.loads((tmp_path / "pretrain.json").read_text())["gather"] in ("on", "off")


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"gather": "on"}, {"gather": "off"}, {"method": "dense"}], ids=str)
def test_compiled_pieces_train_the_same(config, change: dict[str, Any], tmp_path: Path):
    plain, compiled = (pretrain(told(config, tmp_path / str(c), compile=c, **change)) for c in (False, True))
    assert compiled["loss"] == pytest.approx(plain["loss"], abs=2e-3)
    assert compiled["density"] == pytest.approx(plain["density"], abs=0.02)
    assert weights(tmp_path / "True").keys() == weights(tmp_path / "False").keys(), "compiling renames nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "no data files"),
        ({"density": 0.0}, "density 0.0 is out of range"),
        ({"density": 1.5}, "density 1.5 is out of range"),
        ({"density": 0.5, "method": "highway"}, "has no density"),
        ({"method": "static"}, "adapts a trained model.*lower --size"),
        ({"method": "telepathy"}, "unknown method 'telepathy'"),
        ({"fields": {"depth": 3}}, "has no field depth"),
        ({"size": "big"}, "cannot be read"),
        ({"size": "2x3@16"}, "do not divide the width"),
        ({"batch": 10_000}, "less than a batch"),
        ({"tokenizer": "train:10"}, "train:SIZE"),
        ({"tokenizer": "train:300"}, "made with another tokenizer"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"fsdp": True}, "start them with torchrun"),
        ({"fsdp": True, "compile": True}, "leave one of the two out"),
        ({"gather": "on", "method": "dense"}, "nothing is skipped"),
        ({"warmup": 100.0}, "warmup 100.0 is out of range"),
        ({"lr": float("nan")}, "must be positive"),
        ({"device": "gpu"}, "device must be one of"),
        ({"density": 0.5, "fields": {"density": 0.25}}, "density is given twice"),
        ({"fields": {"detach": "False"}}, "detach of method 'skiplayer' is true or false, not 'False'"),
        ({"fields": {"alpha": "x"}}, "alpha of method 'skiplayer' is a number"),
        ({"fields": {"but": 3}}, "but of method 'skiplayer' is a list, each a whole number, not 3"),
        ({"method": "flexidepth"}, "adapts a trained model"),
    ],
    ids=str,
)
def test_bad_settings_say_what_to_do_and_leave_no_model(config, change: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        pretrain(told(config, tmp_path, **change))
    assert not (tmp_path / "results.json").exists()


def test_every_method_is_named_in_the_table_of_this_test():
    for_trained_models = {name for name, kind in METHODS.items() if kind.frozen and kind().target is None}
    assert set(BY_METHOD) == set(METHODS) - for_trained_models and BY_METHOD["random"] == 0.5
    assert {"static", "flexidepth"} <= for_trained_models
