"""Pieces of text, one per token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.maps.pieces import Pieces


@pytest.fixture(scope="module")
def pieces(tiny_tokenizer):
    return Pieces(tiny_tokenizer)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_joined_they_are_the_text(pieces, tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    result = pieces(ids)
    assert len(result) == len(ids) and "".join(result) == text


def test_the_last_token_of_a_character_has_it(pieces, tiny_tokenizer):
    ids = tiny_tokenizer.encode("é", add_special_tokens=False)
    assert len(ids) > 1 and pieces(ids) == [""] * (len(ids) - 1) + ["é"]


def test_special_tokens_and_spaces_are_shown(pieces, tiny_tokenizer):
    ids = tiny_tokenizer.encode("<|im_start|> fox<|im_end|>", add_special_tokens=False)
    assert pieces(ids)[0] == "<|im_start|>" and pieces(ids)[-1] == "<|im_end|>" and pieces(ids)[1].startswith(" ")


def test_half_a_character_at_the_end_is_shown_as_broken(pieces, tiny_tokenizer):
    ids = tiny_tokenizer.encode("é", add_special_tokens=False)
    assert pieces(ids[:1]) == ["\ufffd"]
