"""GGUF files: the same tensors bit for bit, and a cache that is whole or empty whatever happens while it is made."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, TokenType
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedModel

from depthdial.models import gguf
from depthdial.models.base import load_base
from depthdial.models.gguf import Source, cache_root, cached_folder, dequantised, file_sha256

CONTEXT = 64
HEADS, KEY_HEADS = 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGED = ["ĊĊ", "ĠĠ"]


def _write_gguf(path: Path, model: PreTrainedModel) -> None:
    """What llama.cpp's converter writes for a Llama with a byte-level vocabulary split as SmolLM's is."""
    config: Any = model.config
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *MERGED]
    tokens += [f"<unused{index}>" for index in range(config.vocab_size - len(tokens))]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_name("tiny")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(["Ċ Ċ", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "model.layers": "blk",
    }
    for key, weight in model.state_dict().items():
        array = weight.numpy()
        for heads, projection in ((HEADS, "q_proj"), (KEY_HEADS, "k_proj")):
            if projection in key:  # llama.cpp turns neighbouring pairs, Hugging Face the two halves of a head
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        for theirs, its in names.items():
            key = key.replace(theirs, its)
        writer.add_tensor(key, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny_gguf(tiny_model: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    _write_gguf(path, _original(tiny_model))
    return path


def _original(tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny_model("llama", num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, tie_word_embeddings=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def _left(cache: Path) -> list[str]:
    """What is in the cache beside locks."""
    return sorted(path.name for path in cache.glob("*") if path.suffix != ".lock")


# ---------------------------------------------------------------- what is read


def test_the_model_is_the_one_that_was_written(
    tiny_gguf: Path, tiny_model: Callable[..., PreTrainedModel], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_base(str(tiny_gguf), dtype="float32", device="cpu")
    assert isinstance(model, LlamaForCausalLM)
    expected = _original(tiny_model).state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not hasattr(model.config, "quantization_config")
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.model_max_length == CONTEXT
    assert tokenizer.chat_template
    assert _left(cache) == [cached_folder(file_sha256(tiny_gguf)).name]
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "tiny.gguf: de-quantising" in said
    model.save_pretrained(cache / "again")  # a plain model: this is refused for one that calls itself quantised


def test_digits_are_cut_off_before_the_split_into_words(tiny_gguf: Path) -> None:
    _, tokenizer = load_base(str(tiny_gguf), device="cpu")
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]
    assert tokenizer.decode(tokenizer("a:\n\n12 b")["input_ids"]) == "a:\n\n12 b"


def test_the_cache_is_found_again_under_another_name_and_in_silence(
    tiny_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_base(str(tiny_gguf), device="cpu")
    other = Path(shutil.copyfile(tiny_gguf, tmp_path / "other-name"))
    capfd.readouterr()
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
    load_base(str(other), device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [4, 30, 3000, 0.6])
def test_a_truncated_file_is_refused_in_one_line(tiny_gguf: Path, tmp_path: Path, cache: Path, kept: float) -> None:
    path = Path(shutil.copyfile(tiny_gguf, tmp_path / "cut.gguf"))
    os.truncate(path, int(kept * path.stat().st_size) if kept < 1 else int(kept))
    with pytest.raises(ValueError, match=r"^cut\.gguf: this GGUF file cannot be read[^\n]*$"):
        load_base(str(path), device="cpu")
    assert _left(cache) == []


def test_an_unknown_architecture_is_refused(tmp_path: Path, cache: Path) -> None:
    writer = GGUFWriter(tmp_path / "odd.gguf", "nonesuch")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"^odd\.gguf: .*nonesuch[^\n]*$"):
        load_base(str(tmp_path / "odd.gguf"), device="cpu")
    assert _left(cache) == []


# ---------------------------------------------------------------- where it is kept


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/a/b", "/c", "/a/b"),
        ("", "/c", "/c/depthdial"),
        ("", "", "/home/me/.cache/depthdial"),
        ("~/x", "", "/home/me/x"),
    ],
)
def test_cache_root(monkeypatch: pytest.MonkeyPatch, own: str, xdg: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DEPTHDIAL_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_root() == Path(expected)


# ---------------------------------------------------------------- when something goes wrong while it is made


@pytest.mark.parametrize(
    "problem",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")],
)
def test_a_full_disk_leaves_nothing_behind(
    tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def save(model: PreTrainedModel, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise problem

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with pytest.raises(OSError, match=r"No space left on device; .*DEPTHDIAL_CACHE") as caught:
        load_base(str(tiny_gguf), device="cpu")
    assert "\n" not in str(caught.value)
    assert _left(cache) == []
    monkeypatch.undo()
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(cache.parent))
    load_base(str(tiny_gguf), device="cpu")  # once there is space again


def test_a_disk_that_is_too_small_is_noticed_before_writing(
    tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *_: pytest.fail("wrote"))
    with pytest.raises(OSError, match="No space left on device, 0 MB are needed"):
        load_base(str(tiny_gguf), device="cpu")
    assert _left(cache) == []


def test_a_cache_that_cannot_be_written(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot write the cache"):
        load_base(str(tiny_gguf), device="cpu")


@pytest.mark.parametrize("problem", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing_behind(
    cache: Path, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException]
) -> None:
    def convert(label: str, source: Path, folder: Path) -> None:
        folder.mkdir()
        raise problem

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(problem):
        dequantised("m", "0" * 64, lambda scratch: Source(scratch))
    assert _left(cache) == []


def _fake_convert(label: str, source: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(source.read_text())
    time.sleep(0.2)  # long enough for the other one to come and wait


def _source(calls: list[Path]) -> Callable[[Path], Source]:
    def source(scratch: Path) -> Source:
        calls.append(scratch)
        (scratch / "m.gguf").write_text("weights")
        (scratch / "NOTICE").write_text("terms")
        return Source(scratch / "m.gguf", (scratch / "NOTICE",))

    return source


def test_what_a_killed_process_left_is_cleared(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "_convert", _fake_convert)
    dead = cached_folder("0" * 64)
    dead = dead.with_name(f"{dead.name}.partial")
    (dead / "model").mkdir(parents=True)
    (dead / "model" / "model.safetensors").write_text("half")
    folder = dequantised("m", "0" * 64, _source([]))
    assert sorted(path.name for path in folder.iterdir()) == ["NOTICE", "config.json"]
    assert _left(cache) == [folder.name]


def test_two_at_once_do_the_work_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gguf, "_convert", _fake_convert)
    calls: list[Path] = []
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(dequantised("m", "0" * 64, _source(calls)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert folders == [cached_folder("0" * 64)] * 3
    assert "another process" in capsys.readouterr().err
    assert _left(cache) == [folders[0].name]
