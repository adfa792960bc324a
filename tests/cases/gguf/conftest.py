"""Tiny random GGUF files, each with one oddity: `write(name, ...)` and `plain`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

HIDDEN, LAYERS, HEADS, KV, INNER = 32, 2, 4, 2, 64
Weights = dict[str, np.ndarray]


def byte_letters() -> list[str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    name = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [name[b] for b in range(256)]


def byte_level(*more: str) -> tuple[list[str], list[str] | None, list[int]]:
    """Tokens, merges and types of a byte-level vocabulary; the last three are control tokens."""
    tokens = [*byte_letters(), "he", "ll", "hell", "hello", "12", "123", *more]
    merges = ["h e", "l l", "he ll", "hell o", "1 2", "12 3"]
    return [*tokens, "<|endoftext|>", "<|im_start|>", "<|im_end|>"], merges, [1] * len(tokens) + [3] * 3


def sentence_piece() -> tuple[list[str], list[str] | None, list[int]]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "h", "i", "hi", "▁hi", "▁h"]
    return tokens, None, [2, 3, 3, *[6] * 256, *[1] * 6]


def weights(rows: int) -> Weights:
    draw = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return (draw.standard_normal(shape) * 0.2).astype(np.float32)

    found = {"token_embd.weight": matrix(rows, HIDDEN), "output.weight": matrix(rows, HIDDEN)}
    found["output_norm.weight"] = np.ones(HIDDEN, np.float32)
    for i in range(LAYERS):
        found |= {
            f"blk.{i}.attn_q.weight": matrix(HIDDEN, HIDDEN),
            f"blk.{i}.attn_k.weight": matrix(KV * HIDDEN // HEADS, HIDDEN),
            f"blk.{i}.attn_v.weight": matrix(KV * HIDDEN // HEADS, HIDDEN),
            f"blk.{i}.attn_output.weight": matrix(HIDDEN, HIDDEN),
            f"blk.{i}.ffn_gate.weight": matrix(INNER, HIDDEN),
            f"blk.{i}.ffn_up.weight": matrix(INNER, HIDDEN),
            f"blk.{i}.ffn_down.weight": matrix(HIDDEN, INNER),
            f"blk.{i}.attn_norm.weight": np.ones(HIDDEN, np.float32),
            f"blk.{i}.ffn_norm.weight": np.ones(HIDDEN, np.float32),
        }
    return found


def write_file(
    path: Path,
    *,
    say: Callable[[GGUFWriter], Any] | None = None,
    change: Callable[[Weights], Any] | None = None,
    pre: str | None = "gpt-2",
    words: tuple[list[str], list[str] | None, list[int]] | None = None,
    ends: int | None = None,
) -> Path:
    """say: further metadata, given the writer; change: of the tensors, given the dict."""
    tokens, merges, types = words or byte_level()
    out = GGUFWriter(path, "llama")
    out.add_context_length(128)
    out.add_embedding_length(HIDDEN)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(HIDDEN // HEADS)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2" if merges else "llama")
    if pre is not None:
        out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types(types)
    if merges:
        out.add_token_merges(merges)
    else:
        out.add_token_scores([0.0] * 259 + [-1.0, -20.0, -20.0, -2.0, -0.5, -3.0][: len(tokens) - 259])
    out.add_eos_token_id((len(tokens) - 3 if merges else 2) if ends is None else ends)
    out.add_bos_token_id(len(tokens) - 3 if merges else 1)
    if say:
        say(out)
    tensors = weights(len(tokens))
    if change:
        change(tensors)
    for name, tensor in tensors.items():
        if name.endswith(("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")):
            heads = HEADS if "attn_q" in name else KV  # llama.cpp's order of rope's halves
            tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        out.add_tensor(name, np.ascontiguousarray(tensor))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(name, say=, change=, pre=, words=, ends=)`: a file of that name."""
    return lambda name="odd.gguf", **oddity: write_file(tmp_path / name, **oddity)


@pytest.fixture
def biases() -> Callable[[Weights], None]:
    draw = np.random.default_rng(1)

    def add(tensors: Weights) -> None:
        for i in range(LAYERS):
            for name, size in (("q", HIDDEN), ("k", KV * HIDDEN // HEADS), ("v", KV * HIDDEN // HEADS)):
                tensors[f"blk.{i}.attn_{name}.bias"] = draw.standard_normal(size).astype(np.float32)

    return add


@pytest.fixture
def pieces_of() -> dict[str, Any]:
    """Vocabularies by kind."""
    return {"byte-level": byte_level, "sentencepiece": sentence_piece}
