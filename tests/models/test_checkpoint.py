"""Plug-ins on disk: whole or not at all, and one line for everything that can be wrong with one."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from depthdial.core.dial import Curve
from depthdial.methods import FlexiDepth
from depthdial.models import checkpoint
from depthdial.models.checkpoint import METHOD_FILE, PARTS_FILE, Plugin, attach, cast_parts, parts_of, read, save
from depthdial.models.convert import revert
from depthdial.models.converted import converted_of, is_converted
from depthdial.models.fingerprint import fingerprint

IDS = torch.randint(3, 300, (2, 10), generator=torch.Generator().manual_seed(0))
ROUTER = "layers.2.attn.router.enc.weight"


@pytest.fixture
def plugin(tiny_plugin: Path, tmp_path: Path) -> Path:
    """A copy of a good plug-in for the tiny Llama, to damage."""
    return Path(shutil.copytree(tiny_plugin, tmp_path / "plugin"))


@pytest.fixture
def base(tiny_model: Callable) -> Any:
    return tiny_model("llama")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def refusal(model: Any, path: Path, **kwargs: Any) -> str:
    """The message of a refusal: one line; and the model is as it was."""
    before, names = logits(model), list(model.state_dict())
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at what it says
        attach(model, path, **kwargs)
    text = str(caught.value)
    print(text)  # shown by pytest -rP
    assert "\n" not in text
    assert list(model.state_dict()) == names and torch.equal(logits(model), before)
    assert not is_converted(model) or model.converted.plugin is None
    return text


def edit(plugin: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((plugin / METHOD_FILE).read_text())
    change(data)
    (plugin / METHOD_FILE).write_text(json.dumps(data))


def retensor(plugin: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(plugin / PARTS_FILE)
    change(tensors)
    save_file(tensors, plugin / PARTS_FILE)


@pytest.mark.parametrize(
    ("prompt", "said"), [(1.0, "read in full"), (0.75, "at a cost of 0.75"), ("same", "form of the papers"), (None, "")]
)
def test_it_says_how_its_prompts_were_read(base: Any, plugin: Path, prompt: Any, said: str):
    edit(plugin, lambda data: data.update(prompt_budget=prompt))
    known: Any = converted_of(attach(base, plugin)).plugin
    assert known.prompt_budget == prompt and said in known.form and bool(said) == bool(known.form)
    assert save(base, plugin.parent / "again") and read(plugin.parent / "again").prompt_budget == prompt


def test_one_of_before_was_trained_in_the_form_of_the_papers(plugin: Path):
    edit(plugin, lambda data: data.pop("prompt_budget"))
    assert read(plugin).prompt_budget == "same" and "form of the papers" in read(plugin).form


@pytest.mark.parametrize("prompt", [0, -1, 1.5, True, "full", [], {"a": 1}, 10**399])
def test_an_odd_prompt_budget_is_refused(base: Any, plugin: Path, prompt: Any):
    edit(plugin, lambda data: data.update(prompt_budget=prompt))
    assert "prompt_budget is" in refusal(base, plugin)


def test_round_trip(base: Any, tiny_model: Callable, adaptive: Callable, tmp_path: Path):
    model = adaptive(tiny_model("llama"), weights="hard", but=[4])
    curve = Curve((-1.0, 0.5), (0.8, 0.9), (0.3, 0.1))
    given = Plugin(
        "mine", model.converted.method, fingerprint(model), {"text": curve}, 0.85, {"steps": 3, "data": ["a.jsonl"]}
    )
    path = save(model, tmp_path / "deep" / "mine", given, card="# mine\n")
    assert path == tmp_path / "deep" / "mine"
    assert sorted(f.name for f in path.iterdir()) == ["README.md", METHOD_FILE, PARTS_FILE]
    assert read(path) == given
    attached: Any = attach(base, path)
    assert (
        attached is base and attached.converted.plugin == given and attached.converted.method == model.converted.method
    )
    assert attached.converted.plugin.curves["text"] == curve
    assert torch.equal(logits(attached), logits(model))
    assert all(torch.equal(t, parts_of(model)[n]) for n, t in parts_of(attached).items())


def test_names_on_disk(tiny_plugin: Path):
    names = set(load_file(tiny_plugin / PARTS_FILE))
    assert ROUTER in names and "layers.5.mlp.adapter.down.weight" in names
    assert len(names) == 4 * (5 + 3)  # enc, norm, dec, head, bias; gate, up, down
    data = json.loads((tiny_plugin / METHOD_FILE).read_text())
    assert data["format_version"] == 1 and data["method"]["name"] == "flexidepth"
    assert set(data["base"]) == {"model_type", "config", "weights"}


def test_metadata_by_default(adaptive: Callable, base: Any, plugin: Path, tmp_path: Path, tiny_model: Callable):
    fresh = read(save(adaptive(base), tmp_path / "fresh"))
    assert fresh.name == "fresh" and fresh.curves == {} and fresh.recommended is None
    again = save(attach(tiny_model("llama"), plugin), tmp_path / "again")
    assert read(again) == read(plugin), "a loaded plug-in keeps its curve"


def test_a_model_without_a_plugin_cannot_be_saved(base: Any, tmp_path: Path):
    with pytest.raises(ValueError, match="convert"):
        save(base, tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_bf16_parts_give_the_same_logits(base: Any, tiny_model: Callable, adaptive: Callable, tmp_path: Path):
    model = adaptive(tiny_model("llama"))
    cast_parts(model, torch.bfloat16)
    path = save(model, tmp_path / "small")
    assert {t.dtype for t in load_file(path / PARTS_FILE).values()} == {torch.bfloat16}
    assert torch.equal(logits(attach(base, path)), logits(model))


# ---------------------------------------------------------------- the base


def test_another_configuration_is_refused_even_if_other_weights_are_allowed(tiny_model: Callable, plugin: Path):
    for other in (tiny_model("llama", rms_norm_eps=1e-3), tiny_model("qwen3")):
        for allow in (False, True):
            assert "another base" in refusal(other, plugin, allow_other_weights=allow)


def test_other_weights_are_refused_then_allowed(tiny_model: Callable, plugin: Path):
    other = tiny_model("llama", seed=1)
    assert "--allow-other-weights" in refusal(other, plugin)
    attach(other, plugin, allow_other_weights=True)
    assert other.converted.plugin.name == "tiny" and len(other.converted.routed) == 8


def test_a_converted_model_is_refused(base: Any, plugin: Path):
    attach(base, plugin)
    before = logits(base)
    with pytest.raises(ValueError, match="converted already"):
        attach(base, plugin)
    assert torch.equal(logits(base), before)


# ---------------------------------------------------------------- damage


def drop(name: str):
    return lambda tensors: tensors.pop(name)


TENSORS = {
    "missing": (drop(ROUTER), ["lacks 1", ROUTER]),
    "extra": (lambda t: t.update({"layers.1.attn.router.bias": torch.zeros(())}), ["1 tensor", "layers.1.attn"]),
    "shape": (lambda t: t.update({ROUTER: t[ROUTER][:-1].clone()}), [ROUTER, "[7, 32], not [8, 32]"]),
    "empty": (lambda t: t.clear(), ["lacks 32"]),
}


@pytest.mark.parametrize("damage", TENSORS)
def test_wrong_tensors(base: Any, plugin: Path, damage: str):
    change, said = TENSORS[damage]
    retensor(plugin, change)
    text = refusal(base, plugin)
    assert PARTS_FILE in text and all(words in text for words in said)


@pytest.mark.parametrize("size", [0, 4, 100, -1], ids=lambda n: f"{n} bytes")
def test_truncated_tensors(base: Any, plugin: Path, size: int):
    whole = (plugin / PARTS_FILE).read_bytes()
    (plugin / PARTS_FILE).write_bytes(whole[:size])
    text = refusal(base, plugin)
    assert "corrupt" in text and "get the plug-in again" in text


METHODS_DAMAGED: dict[str, tuple[Callable[[dict], Any], str]] = {
    "version": (lambda d: d.update(format_version=2), "format version 2; this depthdial reads 1"),
    "no version": (lambda d: d.pop("format_version"), "format_version"),
    "no base": (lambda d: d.pop("base"), "base"),
    "base field": (lambda d: d["base"].pop("weights"), "weights"),
    "no method": (lambda d: d.pop("method"), "method"),
    "method is a word": (lambda d: d.update(method="flexidepth"), "method"),
    "unknown method": (lambda d: d["method"].update(name="flexodepth"), "unknown method 'flexodepth'"),
    "no method name": (lambda d: d["method"].pop("name"), "name"),
    "unknown field": (lambda d: d["method"].update(colour=3), "no field colour"),
    "bad value": (lambda d: d["method"].update(weights="firm"), "weights"),
    "wrong type": (lambda d: d["method"].update(router_ratio="many"), "get the plug-in again"),
    "layers beyond": (lambda d: d["method"].update(first=5, last=9), "do not fit"),
    "no curves": (lambda d: d.update(curves=None), "get the plug-in again"),
    "short curve": (lambda d: d["curves"]["text"].update(costs=[0.7]), "curve"),
    "falling curve": (lambda d: d["curves"]["text"].update(costs=[0.9, 0.8, 0.7]), "costs"),
    "curve field": (lambda d: d["curves"]["text"].pop("kls"), "kls"),
}


@pytest.mark.parametrize("damage", METHODS_DAMAGED)
def test_wrong_metadata(base: Any, plugin: Path, damage: str):
    change, said = METHODS_DAMAGED[damage]
    edit(plugin, change)
    assert said in refusal(base, plugin)


@pytest.mark.parametrize("content", [b"", b"{", b'"text"', b"[1]", b"null", b"\xff\xfe{}", b'{"format_version": 1'])
def test_broken_json(base: Any, plugin: Path, content: bytes):
    (plugin / METHOD_FILE).write_bytes(content)
    text = refusal(base, plugin)
    assert METHOD_FILE in text and "get the plug-in again" in text


@pytest.mark.parametrize("file", [METHOD_FILE, PARTS_FILE])
def test_missing_files(base: Any, plugin: Path, file: str):
    (plugin / file).unlink()
    assert file in refusal(base, plugin)
    assert "not a plug-in" in refusal(base, plugin / "nowhere")


def test_after_a_refusal_a_good_plugin_attaches(base: Any, plugin: Path, tiny_plugin: Path):
    retensor(plugin, drop(ROUTER))
    refusal(base, plugin)
    attach(base, tiny_plugin)
    assert base.converted.plugin.name == "tiny"


# ---------------------------------------------------------------- saving


def no_space(*_: Any, **__: Any):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_rust(tensors: Any, path: Path, **_: Any):
    path.write_bytes(b"half of it")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("where", "name", "fails"),
    [
        (checkpoint, "save_file", full_disk_in_rust),
        (checkpoint, "save_file", no_space),
        (Path, "write_text", no_space),
        (checkpoint.os, "replace", no_space),
    ],
    ids=["tensors", "tensors (OSError)", "json", "rename"],
)
@pytest.mark.parametrize("there", [True, False], ids=["over an old one", "anew"])
def test_a_full_disk_leaves_things_as_they_were(
    plugin: Path, tiny_model: Callable, monkeypatch, where: Any, name: str, fails: Callable, there: bool
):
    model = attach(tiny_model("llama"), plugin)
    for tensor in parts_of(model).values():
        tensor += 1
    target = plugin if there else plugin.parent / "new"
    before = {file.name: file.read_bytes() for file in plugin.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fails)
        with pytest.raises(OSError, match="No space left on device"):
            save(model, target)
    assert {file.name: file.read_bytes() for file in plugin.iterdir()} == before
    assert [path.name for path in plugin.parent.iterdir()] == ["plugin"], "nothing half-written is left behind"
    saved = save(model, target)
    assert torch.equal(load_file(saved / PARTS_FILE)[ROUTER], parts_of(model)[ROUTER])


def test_saving_over_an_old_plugin_replaces_it(plugin: Path, tiny_model: Callable, adaptive: Callable):
    model = adaptive(tiny_model("llama"), first=3)
    save(model, plugin)
    assert read(plugin).method == model.converted.method and read(plugin).curves == {}
    assert set(load_file(plugin / PARTS_FILE)) == set(parts_of(model))
    assert [path.name for path in plugin.parent.iterdir()] == ["plugin"]


@pytest.mark.parametrize("before", [True, False], ids=["of today", "of before parts had a sha256"])
@pytest.mark.parametrize("moves", range(5))
def test_a_kill_between_files_leaves_the_old_plugin_or_the_new_one(
    plugin: Path, tiny_model: Callable, monkeypatch, moves: int, before: bool
):
    if not before:
        edit(plugin, lambda data: data.pop("parts_sha256"))
    changed: Any = attach(tiny_model("llama"), plugin)
    for tensor in parts_of(changed).values():
        tensor += 1
    old, new = logits(attach(tiny_model("llama"), plugin)), logits(changed)
    changed.converted.plugin = dataclasses.replace(changed.converted.plugin, name="new")
    if (child := os.fork()) == 0:
        left, replace = iter(range(moves)), os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if next(left, None) is not None else os._exit(9))
        save(changed, plugin, card="# new\n")
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert killed == (moves < 4), "each of the moves is one test"
    there = attach(tiny_model("llama"), plugin)
    is_new = read(plugin).name == "new"
    assert is_new == (moves >= 2) and torch.equal(logits(there), new if is_new else old)
    save(changed, plugin, card="# newer\n")
    assert torch.equal(logits(attach(tiny_model("llama"), plugin)), new)
    assert sorted(file.name for file in plugin.iterdir()) == ["README.md", METHOD_FILE, PARTS_FILE]


def test_parts_of_another_save_are_refused(base: Any, plugin: Path, tiny_model: Callable, tmp_path: Path):
    """A copy that was cut short, or of two plug-ins of one shape: each file is whole, together they are neither."""
    changed: Any = attach(tiny_model("llama"), plugin)
    for tensor in parts_of(changed).values():
        tensor += 1
    shutil.copy(save(changed, tmp_path / "other") / PARTS_FILE, plugin / PARTS_FILE)
    assert "was written with" in refusal(base, plugin)
    edit(plugin, lambda data: data.pop("parts_sha256"))  # as older plug-ins are
    assert torch.equal(logits(attach(base, plugin)), logits(changed))


def test_a_folder_of_something_else_is_left_alone(base: Any, adaptive: Callable, tmp_path: Path):
    (tmp_path / "README.md").write_text("of a model")
    with pytest.raises(ValueError, match=r"holds a README\.md that is not a plug-in's"):
        save(adaptive(base), tmp_path, card="# card\n")
    assert (tmp_path / "README.md").read_text() == "of a model" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "README.md").rename(tmp_path / "notes.md")
    save(base, tmp_path, card="# card\n")
    assert read(tmp_path).method == base.converted.method and (tmp_path / "notes.md").exists()


def test_a_file_in_the_way_is_refused(base: Any, adaptive: Callable, tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        save(adaptive(base), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_reverted_model_has_forgotten_its_plugin(base: Any, plugin: Path, adapted: Callable, tmp_path: Path):
    attach(base, plugin)
    adapted(revert(base), FlexiDepth(first=4))
    saved = read(save(base, tmp_path / "other"))
    assert saved.method == FlexiDepth(first=4) and saved.curves == {}
