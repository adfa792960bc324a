"""A tokenizer trained on the data: the size asked for, every text back, the same each time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.train.data import Record
from depthdial.train.tokenizer import (
    END,
    open_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)

RECORDS = [
    Record("a", text="the quick brown fox jumps over the lazy dog " * 20),
    Record("b", messages=({"role": "user", "content": "12 + 30"}, {"role": "assistant", "content": "42 is the sum"})),
]


def test_it_has_the_size_asked_for_and_ends_documents(tmp_path):
    tokenizer = train_tokenizer(RECORDS, 280)
    assert len(tokenizer) == 280 and tokenizer.eos_token == END
    assert len(tokenizer("1234")["input_ids"]) == 4, "digits stand alone"
    assert tokenizer_fingerprint(train_tokenizer(RECORDS, 280)) == tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(train_tokenizer(RECORDS, 281)) != tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(open_tokenizer(str(tmp_path))) == tokenizer_fingerprint(tokenizer)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_every_text_comes_back(text: str):
    tokenizer = train_tokenizer(RECORDS, 260)
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_what_can_be_asked_for():
    assert vocabulary_size("train:4096") == 4096 and vocabulary_size("some/folder") is None
    for name in ("train:", "train:many", "train:100", "train:-5"):
        with pytest.raises(ValueError, match="train:SIZE"):
            vocabulary_size(name)
    with pytest.raises(ValueError, match="no such file or folder"):
        open_tokenizer("/nowhere/at/all")
