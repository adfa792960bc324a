"""The tokenizer that a GGUF file describes: how text is cut, which tokens end it, what is matched whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from depthdial import load
from depthdial.engine.llm import LLM
from depthdial.models.base import load_base

Write = Callable[..., Path]
LAST, END = 264, 262
"""<|im_end|>, and the token of the end, <|endoftext|>."""


def _tokens(path: Path, text: str) -> list[str]:
    _, tokenizer = load_base(str(path), dtype="float32", device="cpu")
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]))


# ---------------------------------------------------------------- how text is cut

SPLITS = {
    "gpt-2": ["123", "4", "5"],
    "olmo": ["123", "4", "5"],
    "qwen2": ["1", "2", "3", "4", "5"],
    "command-r": ["1", "2", "3", "4", "5"],
    "starcoder": ["1", "2", "3", "4", "5"],
    "tekken": ["1", "2", "3", "4", "5"],
    "llama3": ["123", "4", "5"],
    "llama-bpe": ["123", "4", "5"],
    "gpt-4o": ["123", "4", "5"],
    "falcon": ["123", "4", "5"],
    "deepseek-coder": ["1", "2", "3", "4", "5"],
}


@pytest.mark.parametrize(("pre", "pieces"), SPLITS.items())
def test_digits_are_cut_as_the_rule_says(write: Write, pre: str, pieces: list[str]) -> None:
    assert [piece for piece in _tokens(write(pre=pre), "12345") if piece != "<|endoftext|>"] == pieces


def test_runs_of_signs_and_lines_are_cut_as_the_rule_says(write: Write, pieces_of: dict[str, Any]) -> None:
    tokens, merges, types = pieces_of["byte-level"]("!Ċ", "ĊĊ")
    words = (tokens, [*merges, "! Ċ", "Ċ Ċ"], types)
    cut = {pre: _tokens(write(f"{pre}.gguf", pre=pre, words=words), "h!\n\nh") for pre in ("gpt-2", "qwen2")}
    assert cut == {"gpt-2": ["h", "!", "Ċ", "Ċ", "h"], "qwen2": ["h", "!Ċ", "Ċ", "h"]}


@pytest.mark.parametrize("pre", ["no-such-splitting", "bert", "GPT-2", "\x1b[31mred"])
def test_a_rule_that_is_not_known_is_refused_by_its_name(write: Write, pre: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre .*rule of splitting text is not known") as caught:
        load_base(str(write(pre=pre)), device="cpu")
    assert str(caught.value).isprintable()


def test_a_file_that_names_no_rule_is_said_to_name_none(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    assert _tokens(write(pre=None), "12345") == ["123", "4", "5"]
    assert "tokenizer.ggml.pre" in capfd.readouterr().err


def test_a_piece_that_is_a_token_is_taken_whole_where_the_rule_says_so(write: Write, pieces_of: dict[str, Any]) -> None:
    words = pieces_of["byte-level"]("olleh")  # no merge makes it
    llama3, gpt2 = (_tokens(write(f"{pre}.gguf", pre=pre, words=words), "olleh") for pre in ("llama-bpe", "gpt-2"))
    assert llama3 == ["<|endoftext|>", "olleh"]  # and such a text begins with the token for it
    assert gpt2 == ["o", "ll", "e", "h"]


# ---------------------------------------------------------------- spaces


@pytest.mark.parametrize(("prefix", "pieces"), [(True, ["<s>", "▁hi"]), (False, ["<s>", "hi"]), (None, ["<s>", "▁hi"])])
def test_a_space_before_the_text_is_as_the_file_says(
    write: Write, pieces_of: dict[str, Any], prefix: bool | None, pieces: list[str]
) -> None:
    say = None if prefix is None else lambda out: out.add_add_space_prefix(prefix)
    path = write(words=pieces_of["sentencepiece"](), say=say)
    assert _tokens(path, "hi") == pieces
    _, tokenizer = load_base(str(path), device="cpu")
    assert tokenizer.decode(tokenizer("hi hi")["input_ids"], skip_special_tokens=True) == "hi hi"


def test_a_space_before_bytes_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.add_space_prefix"):
        load_base(str(write(say=lambda out: out.add_add_space_prefix(True))), device="cpu")


@pytest.mark.parametrize("key", ["remove_extra_whitespaces", "add_sep_token"])
def test_other_changes_of_the_text_are_refused(write: Write, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        load_base(str(write(say=lambda out: out.add_bool(f"tokenizer.ggml.{key}", True))), device="cpu")


@pytest.mark.parametrize(("key", "tokens"), [("bos", ["<|endoftext|>", "h"]), ("eos", ["h", "<|endoftext|>"])])
def test_tokens_around_the_text_are_as_the_file_says(write: Write, key: str, tokens: list[str]) -> None:
    path = write(say=lambda out: out.add_bool(f"tokenizer.ggml.add_{key}_token", True))
    assert _tokens(path, "h") == tokens


# ---------------------------------------------------------------- tokens that mean something


@pytest.mark.parametrize("roles", [("eot",), ("eom",), ("eot", "eom")])
def test_every_token_of_an_end_ends_a_text(write: Write, roles: tuple[str, ...]) -> None:
    def say(out: GGUFWriter) -> None:
        for role in roles:
            out.add_uint32(f"tokenizer.ggml.{role}_token_id", {"eot": LAST, "eom": LAST - 1}[role])

    model, tokenizer = load(str(write(say=say)), plugin=None, dtype="float32", device="cpu")
    assert LLM.of(model, tokenizer).ends == {END, *({"eot": LAST, "eom": LAST - 1}[role] for role in roles)}
    assert model.config.eos_token_id == tokenizer.eos_token_id == END


@pytest.mark.parametrize("role", ["eos", "bos", "eot", "eom", "padding", "unknown"])
def test_a_token_outside_of_the_vocabulary_is_named(write: Write, role: str) -> None:
    def say(out: GGUFWriter) -> None:
        key = f"tokenizer.ggml.{role}_token_id"
        for data in out.kv_data:  # what the writer was told before
            data.pop(key, None)
        out.add_uint32(key, 5000)

    with pytest.raises(ValueError, match=f"{role}_token_id 5000 lies outside of the vocabulary of 265"):
        load_base(str(write(say=say)), device="cpu")


def test_control_tokens_beyond_ascii_and_a_users_own_are_matched_whole(write: Write, pieces_of: dict[str, Any]) -> None:
    tokens, merges, types = pieces_of["byte-level"]("<→User→>", "<think>")
    types[tokens.index("<→User→>")], types[tokens.index("<think>")] = 3, 4
    path = write(words=(tokens, merges, types))
    assert _tokens(path, "h<→User→>i<think>h") == ["h", "<→User→>", "i", "<think>", "h"]
    _, tokenizer = load_base(str(path), device="cpu")
    ids = tokenizer("h<→User→>é")["input_ids"]
    assert tokenizer.decode(ids) == "h<→User→>é" and max(ids) < len(tokens)


def test_lists_of_another_length_are_named(write: Write, pieces_of: dict[str, Any]) -> None:
    tokens, merges, types = pieces_of["byte-level"]()
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.token_type has 264 entries for 265 tokens"):
        load_base(str(write(words=(tokens, merges, types[:-1]))), device="cpu")
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.merges: 'zz q'"):
        load_base(str(write(words=(tokens, [*merges, "zz q"], types))), device="cpu")


def test_more_tokens_than_rows_of_the_embedding_are_refused(write: Write) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for name in ("token_embd.weight", "output.weight"):
            tensors[name] = tensors[name][:-2]

    with pytest.raises(ValueError, match="lists 265 tokens, and its embedding has 263 rows"):
        load_base(str(write(change=change)), device="cpu")
