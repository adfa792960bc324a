"""Prompts of any length out of a text of any length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.evaluate.speed.prompts import prompt_lengths, prompts


class Letters:
    """A tokenizer of one id per letter."""

    def __call__(self, text, **_kwargs):
        return {"input_ids": [ord(letter) for letter in text]}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.text(min_size=1, max_size=20))
def test_prompts_follow_each_other_through_the_text(lengths, text):
    result = prompts(Letters(), lengths, text)
    assert [len(prompt) for prompt in result] == lengths
    joined, source = [i for prompt in result for i in prompt], [ord(letter) for letter in text]
    assert joined == (source * (sum(lengths) // len(source) + 1))[: sum(lengths)]


def test_the_built_in_passages_are_long_enough_for_variety(tiny_tokenizer):
    first, second = prompts(tiny_tokenizer, [64, 64])
    assert first != second


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="empty"):
        prompts(Letters(), [3], "")


@given(st.integers(1, 80), st.integers(1, 64))
def test_a_batch_mixes_lengths_and_one_text_has_all(batch, longest):
    lengths = prompt_lengths(batch, longest)
    assert len(lengths) == batch and max(lengths) == longest and min(lengths) >= 1
    assert batch < 4 or longest < 20 or len(set(lengths)) > 2
