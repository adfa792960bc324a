"""Malformed plug-ins end in one clear line: a fuzzer over method.json and parts.safetensors, seeded."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from depthdial.cli.app import main
from depthdial.models import load
from depthdial.models.checkpoint import METHOD_FILE, PARTS_FILE, attach
from depthdial.models.convert import revert
from depthdial.models.converted import converted_of
from depthdial.models.plugin_json import read_json

ODD: list[Any] = [
    None, True, False, 0, -1, 0.5, 1.5, 16.0, -0.0, 1e308, 2**31, 2**63, 10**30, 10**399, "", "x", "\x1b[31mred\x1b[0m",
    "a" * 5000, "\ud83d", [], {}, [None], [1, 2], {"a": None}, [[[]]], float("nan"), float("inf"), -float("inf"),
]  # fmt: skip


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from _places(child, (*path, key))


def _changed(draw: random.Random, data: Any) -> Any:
    """A copy with one thing in it replaced, taken away or added."""
    data = copy.deepcopy(data)
    *parents, last = draw.choice([path for path in _places(data) if path and path[0] != "training"])
    holder = data
    for key in parents:
        holder = holder[key]
    match draw.randrange(4):
        case 0 if isinstance(holder, dict):
            del holder[last]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(["x", "\x1b]0;title\x07", "name", "first"])] = draw.choice(ODD)
        case _:
            holder[last] = draw.choice(ODD)
    return data


@pytest.fixture
def outcome(tiny_model: Callable[..., PreTrainedModel]) -> Callable[[Path], str | None]:
    """`outcome(folder)`: what attaching a plug-in says; None where it is taken. The base is as it was in any case."""
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def try_it(folder: Path) -> str | None:
        try:
            attach(model, folder, allow_other_weights=True)
        except ValueError as error:
            said = str(error)
        else:
            revert(model)
            said = None
        assert model.state_dict().keys() == before.keys() and not hasattr(model, "route")
        return said

    return try_it


def test_anything_in_method_json_ends_in_one_line(
    tiny_plugin: Path, tmp_path: Path, outcome: Callable[[Path], str | None]
) -> None:
    folder = Path(shutil.copytree(tiny_plugin, tmp_path / "odd"))
    plain, draw = json.loads((folder / METHOD_FILE).read_text()), random.Random(0)
    said = []
    for _ in range(400):
        changed = _changed(draw, plain)
        (folder / METHOD_FILE).write_text(json.dumps(changed))
        said.append(outcome(folder))
    refused = [text for text in said if text is not None]
    assert [text for text in refused if not text.isprintable() or len(text) > 700] == []
    assert len(refused) > 250, "most changes matter"


def test_damage_anywhere_in_the_files_ends_in_one_line(
    tiny_plugin: Path, tmp_path: Path, outcome: Callable[[Path], str | None]
) -> None:
    folder = Path(shutil.copytree(tiny_plugin, tmp_path / "odd"))
    draw, said = random.Random(0), []
    for number in range(200):
        file = folder / (METHOD_FILE, PARTS_FILE)[number % 2]
        whole = file.read_bytes()
        data = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        head = min(len(data), 2000)  # of tensors mostly the header: other numbers are numbers
        for _ in range(draw.randrange(0, 6) if head else 0):
            data[draw.randrange(head)] = draw.randrange(256)
        file.write_bytes(data)
        said.append(outcome(folder))
        file.write_bytes(whole)
    refused = [text for text in said if text is not None]
    assert [text for text in refused if not text.isprintable()] == []
    assert len(refused) > 100


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda t: t.index_fill(0, torch.tensor([0]), float("nan")),
    "inf": lambda t: t.index_fill(0, torch.tensor([0]), float("inf")),
    "whole numbers": lambda t: t.to(torch.int32),
    "true and false": lambda t: t.to(torch.bool),
    "8 bits": lambda t: t.to(torch.float8_e4m3fn),
    "complex": lambda t: t.to(torch.complex64),
    "another shape": lambda t: t.unsqueeze(0),
    "nothing": lambda t: t.reshape(-1)[:0],
}


@pytest.mark.parametrize("kind", WRONG)
def test_tensors_that_are_no_weights_are_named(
    tiny_plugin: Path, tmp_path: Path, outcome: Callable[[Path], str | None], kind: str
) -> None:
    folder = Path(shutil.copytree(tiny_plugin, tmp_path / "odd"))
    plain = load_file(folder / PARTS_FILE)
    for name in list(plain)[:8:3]:
        save_file({**plain, name: WRONG[kind](plain[name])}, folder / PARTS_FILE, metadata={"format": "pt"})
        assert name in (outcome(folder) or "")


def test_a_name_cannot_steer_the_terminal(
    tiny_plugin: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_plugin, tmp_path / "odd"))
    plain = load_file(folder / PARTS_FILE)
    save_file({**plain, "\x1b[31mred": torch.ones(1)}, folder / PARTS_FILE, metadata={"format": "pt"})
    with pytest.raises(SystemExit) as ended:
        main(["generate", "hi", "--model", str(tiny_folder), "--plugin", str(folder), "--dtype", "float32"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "\x1b" not in said and "red" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 10_000, "not valid JSON"),
        ('{"a": NaN}', "not valid JSON"),
        ('{"a": -Infinity}', "not valid JSON"),
        ("[]", "holds a list, not an object"),
        ("null", "holds null, not an object"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of git LFS"),
        ("<!DOCTYPE html><html>", "a web page"),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_json_of_ours(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / METHOD_FILE).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_json(tmp_path / METHOD_FILE)


def test_parts_that_are_a_pointer_or_claim_too_much(
    tiny_plugin: Path, tmp_path: Path, outcome: Callable[[Path], str | None]
) -> None:
    folder = Path(shutil.copytree(tiny_plugin, tmp_path / "odd"))
    (folder / PARTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "pointer of git LFS" in (outcome(folder) or "")
    (folder / PARTS_FILE).write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "corrupt" in (outcome(folder) or "")


def test_the_plugin_as_it_was_is_taken(tiny_plugin: Path, tiny_folder: Path) -> None:
    model, _ = load(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu")
    assert converted_of(model).plugin is not None
