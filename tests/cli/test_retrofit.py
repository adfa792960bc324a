"""`depthdial retrofit`: a folder of its own that the other verbs open, and one-line refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

import depthdial
from depthdial.cli import main
from depthdial.models.base import load_base
from depthdial.models.converted import converted_of
from depthdial.models.fingerprint import fingerprint

IDS = torch.arange(3, 12)[None]


def run(*args: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 0


@pytest.fixture
def exact(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder that is its base at full rank."""
    place = tmp_path / "exact"
    run("retrofit", str(tiny_folder), "--lora", "32", "--dtype", "float32", "--output", str(place))
    return place


def test_a_folder_of_its_own(tiny_folder: Path, tmp_path: Path, capsys: Any):
    place = tmp_path / "out"
    options = ["--loops", "3", "--init", "average", "--lora", "4", "--output", str(place), "--json"]
    run("retrofit", str(tiny_folder), *options)
    facts, config = json.loads(capsys.readouterr().out), json.loads((place / "config.json").read_text())
    assert (
        facts["folder"] == str(place) and facts["blocks"] == config["num_hidden_layers"] == 2 and facts["visits"] == 6
    )
    assert config["model_type"] == facts["model_type"] == "depthdial_llama"
    assert config["method"] | {"name": "recursive", "loops": 3, "rank": 4} == config["method"]
    assert 0 < facts["covered"] < 1 and facts["bytes"] == sum(file.stat().st_size for file in place.iterdir())
    handle: Any = AutoModelForCausalLM.from_pretrained(place)
    assert fingerprint(handle).weights == facts["weights"] != fingerprint(load_base(str(tiny_folder))[0]).weights
    assert sum(w.numel() for w in handle.parameters()) == facts["parameters"]
    assert handle.dtype == torch.bfloat16


def test_the_folder_is_opened_by_load(exact: Path, tiny_folder: Path):
    base, _ = load_base(str(tiny_folder), "float32", "cpu")
    model, tokenizer = depthdial.load(str(exact), dtype="float32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, base(IDS).logits, rtol=1e-3, atol=1e-3)
    route: Any = model.route
    assert route.cost() == 1.0 and (route.layers_used == 6).all()
    assert tokenizer("the quick")["input_ids"]
    converted_of(model).set(offset=-1.0)
    with torch.no_grad():
        model(IDS)
    assert (route.layers_used == 3).all() and route.cost() < 0.9


def test_bad_input_is_one_line(tiny_folder: Path, tiny_model: Any, tmp_path: Path, failed: Any):
    options = ["retrofit", str(tiny_folder), "--output", str(tmp_path / "out")]
    assert "4 loops do not divide 6 layers; choose one of 2, 3, 6" in failed(*options, "--loops", "4")
    assert "unknown init 'upper'; choose one of stepwise, average, lower" in failed(*options, "--init", "upper")
    assert "give 0 (none) to 32 (exact)" in failed(*options, "--lora", "33")
    assert "rank must be at least 0" in failed(*options, "--lora", "-1")
    assert "loops must be at least 2" in failed(*options, "--loops", "1")
    assert not (tmp_path / "out").exists()
    assert "exists and is not an empty folder" in failed("retrofit", str(tiny_folder), "--output", str(tiny_folder))
    assert "no such file or folder" in failed("retrofit", "./nowhere", "--output", str(tmp_path / "out"))
    for family, message in (
        ("qwen3", "norms that no linear map follows"),
        ("gemma3_text", "known, without biases: llama, mistral"),
    ):
        (place := tmp_path / family).mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (place / name).write_bytes((tiny_folder / name).read_bytes())
        tiny_model(family).config.save_pretrained(place)
        (place / "model.safetensors").write_bytes(b"not looked at")
        assert message in failed("retrofit", str(place), "--output", str(tmp_path / "out"))
    GPT2Config(n_layer=2).save_pretrained(place)
    assert "models of type 'gpt2' cannot be converted yet" in failed(
        "retrofit", str(place), "--output", str(tmp_path / "x")
    )


def test_a_folder_that_was_made_by_it_is_no_base(exact: Path, tmp_path: Path, failed: Any):
    assert "has a method of its own already" in failed("retrofit", str(exact), "--output", str(tmp_path / "again"))


def out_of(capsys: Any, *args: str) -> Any:
    """What a verb prints as JSON in its last line."""
    capsys.readouterr()
    run(*args, "--json")
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_other_verbs_open_the_folder(exact: Path, tiny_folder: Path, tmp_path: Path, capsys: Any):
    """Its base's own text, and a map of six layers."""
    options = ["--dtype", "float32", "--device", "cpu", "--max-new-tokens", "6"]
    mine, its = (
        out_of(capsys, "generate", "the quick", "--model", str(folder), *more, *options)
        for folder, more in ((exact, []), (tiny_folder, ["--plugin", "none"]))
    )
    assert mine["token_ids"] == its["token_ids"] and mine["depths"] == [6] * 6 and mine["cost"] == 1.0
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the fox"}\n')
    where = ["--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "map")]
    assert out_of(capsys, "map", "--model", str(exact), *where, *options)["layers"] == 6.0


def test_pretrain_starts_from_the_folder(exact: Path, tmp_path: Path, capsys: Any, failed: Any, tiny_folder: Path):
    rows = [{"text": f"the quick brown fox number {i} jumps over {i % 13} lazy dogs"} for i in range(60)]
    (tmp_path / "fox.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = f"--data {tmp_path / 'fox.jsonl'} --steps 2 --batch 4 --length 16 --heldout 0.1 --device cpu".split()
    options += ["--output", str(tmp_path / "out")]
    assert "give the --size of a fresh model, or the folder" in failed("pretrain", *options)
    assert "leave theirs out" in failed("pretrain", *options, "--start", str(exact), "--size", "2x2@16")
    assert "give --method recursive" in failed("pretrain", *options, "--start", str(exact), "--method", "dense")
    assert "has no method of its own" in failed("pretrain", *options, "--start", str(tiny_folder))
    longer = [*options, "--length", "500", "--start", str(exact)]
    assert "longer than the context" in failed("pretrain", *longer)
    facts = out_of(capsys, "pretrain", *options, "--start", str(exact))
    assert facts["method"] == "recursive" and facts["layers"] == 6.0 and facts["cost"] == 1.0
    began, end = (depthdial.load(str(place), dtype="float32", device="cpu")[0] for place in (exact, tmp_path / "out"))
    pairs = list(zip(began.named_parameters(), end.named_parameters(), strict=True))
    assert all(not torch.equal(a, b) for (_, a), (_, b) in pairs), "all weights are trained"
    assert [name for (name, _), _ in pairs] == [name for _, (name, _) in pairs]
