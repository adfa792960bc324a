"""Texts and bytes of single tokens."""

from __future__ import annotations

from depthdial.serve.token_names import TokenNames


def test_bytes_joined_are_the_text(tiny_tokenizer):
    names = TokenNames(tiny_tokenizer)
    for text in ("the quick brown fox", "漢字 é 😀", "tab\tand\nline"):
        ids = tiny_tokenizer(text)["input_ids"]
        assert bytes(byte for i in ids for byte in names.of(i)[1]).decode() == text


def test_half_a_character_has_bytes_that_are_no_text(tiny_tokenizer):
    names = TokenNames(tiny_tokenizer)
    first = tiny_tokenizer("漢")["input_ids"][0]
    assert names.of(first) == ("\ufffd", ["漢".encode()[0]])


def test_special_tokens_have_their_names(tiny_tokenizer):
    assert TokenNames(tiny_tokenizer).of(2) == ("<|im_end|>", list(b"<|im_end|>"))


def test_every_token_has_a_name(tiny_tokenizer):
    names = TokenNames(tiny_tokenizer)
    assert all(bytes(data).decode(errors="replace") == text for text, data in map(names.of, range(300)))
