"""What tokens are, on sentences small enough to check by eye."""

from __future__ import annotations

import pytest

from depthdial.maps.classes import TokenClasses
from depthdial.maps.pieces import Pieces


@pytest.fixture
def classes(tiny_tokenizer) -> TokenClasses:
    return TokenClasses(tiny_tokenizer)


def lexical(classes: TokenClasses, tokenizer, text: str) -> list[tuple[str, str]]:
    ids, pieces = tokenizer.encode(text, add_special_tokens=False), Pieces(tokenizer)
    assert "".join(pieces.alone(i) for i in ids) == text
    return list(zip([pieces.alone(i) for i in ids], classes.lexical(ids), strict=True))


def test_words_numbers_and_marks(classes, tiny_tokenizer):
    kinds = dict(lexical(classes, tiny_tokenizer, "the fox over 7, \n<|endoftext|>"))
    assert kinds["the"] == "function word"
    assert kinds[" fox"] == "content word"
    assert kinds[" over"] == "function word"
    assert kinds["7"] == "number"
    assert kinds[","] == "punctuation"
    assert kinds["\n"] == "white space"
    assert kinds["<|endoftext|>"] == "end mark"


def test_the_start_of_a_longer_word_is_no_function_word(classes, tiny_tokenizer):
    kinds = lexical(classes, tiny_tokenizer, "the theory")
    assert kinds[0] == ("the", "function word")
    assert kinds[1] == (" the", "content word")
    assert {kind for _, kind in kinds[2:]} == {"word continuation"}
