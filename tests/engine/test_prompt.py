"""What is a prompt, whatever holds it, and what is refused with a line that says what one is."""

from __future__ import annotations

import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from depthdial.engine.prompt import conversation, conversations, many, one


def encoding(**values) -> BatchEncoding:
    return BatchEncoding(values)


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a b", ["a b"]),
        (["a", "b"], ["a", "b"]),
        (np.str_("a"), ["a"]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        (range(3), [[0, 1, 2]]),
        (iter([1, 2]), [[1, 2]]),
        (iter(["a", [1]]), ["a", [1]]),
        (array.array("i", [1, 2]), [[1, 2]]),
        ([np.int64(1), np.uint8(2)], [[1, 2]]),
        ([torch.tensor(1), torch.tensor(2)], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (np.array([1, 2]), [[1, 2]]),
        ([np.array([1, 2]), torch.tensor([3])], [[1, 2], [3]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (encoding(input_ids=[1, 2], attention_mask=[1, 1]), [[1, 2]]),
        (encoding(input_ids=torch.tensor([[0, 5], [6, 7]]), attention_mask=np.array([[0, 1], [1, 1]])), [[5], [6, 7]]),
        (encoding(input_ids=torch.tensor([[3, 5]]), attention_mask=torch.tensor([[True, False]])), [[3]]),
        (encoding(input_ids=[3, 5], attention_mask=[False, True]), [[5]]),
        ([encoding(input_ids=[1]), encoding(input_ids=[[2]])], [[1], [2]]),
        ({"input_ids": np.array([4])}, [[4]]),
        ([], []),
        ([[], []], [[], []]),
    ],
)  # fmt: skip
def test_a_prompt_is_its_text_or_its_tokens(prompt, plain):
    found = many(prompt)
    assert found == plain
    assert all(type(i) is int for ids in found if not isinstance(ids, str) for i in ids)


@pytest.mark.parametrize(
    "prompt",
    [
        None, 5, 2.5, True, b"hello", bytearray(b"a"), object(), {"a", "b"}, {1, 2}, {"prompt": "a"}, {}, np.int64(3),
        {"input_ids": [1], "labels": [1]}, {"prompt_token_ids": [1]}, "a\ud83d", ["a", "\udce9"], ["a", None],
        [1, None], [1, "a"], ["a", 1], [1, 2.0], [1, True], [True, False], [[1, [2]]], np.array([1.0]), np.array(1),
        np.array(["a"]), np.zeros((1, 1, 1), int), torch.tensor([True]), torch.tensor([1.5]), [b"a"],
        torch.empty(2, dtype=torch.int64, device="meta"), torch.tensor([[0, 1]]).to_sparse(),
        encoding(input_ids=[1, 2], attention_mask=[1]), encoding(input_ids=[1, 2], attention_mask=[1, 7]),
        SimpleNamespace(input_ids=[1]),
    ],
)  # fmt: skip
def test_what_is_no_prompt_says_what_one_is(prompt):
    with pytest.raises(
        ValueError, match=r"a prompt is a text, or|tokens are whole numbers|half a char|array|attention"
    ):
        many(prompt)


def test_a_stream_takes_one_prompt():
    assert one(torch.tensor([[1, 2]])) == one(encoding(input_ids=[[1, 2]])) == one(iter([1, 2])) == [1, 2]
    for several in (["a", "b"], np.ones((2, 2), int), [[1], [2]]):
        with pytest.raises(ValueError, match=r"one prompt is wanted|is list of"):
            one(several)


def test_a_conversation_is_a_role_and_a_text_each():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = conversation(({"role": "user", "content": parts}, {"role": "assistant", "content": "", "name": "x"}))
    assert turns == [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "", "name": "x"}]
    one_turn = [{"role": "user", "content": "a"}]
    assert conversations(one_turn) == conversations(iter(one_turn)) == conversations([one_turn]) == [one_turn]
    assert conversations([one_turn, tuple(one_turn)]) == [one_turn, one_turn] and conversations([]) == []


@pytest.mark.parametrize(
    "messages",
    [
        "hi", b"hi", None, 5, {"role": "user", "content": "hi"}, ["hi"], [None], [["hi"]], [[]], [{"content": "hi"}],
        [{"role": None, "content": "hi"}], [{"role": "", "content": "hi"}], [{"role": "user"}],
        [{"role": "user", "content": None}], [{"role": "user", "content": b"hi"}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": "\ud83d"}], [{"role": "user", "content": ["hi"]}],
        [{"role": "user", "content": [{"type": "image", "text": "x"}]}],
        [{"role": "user", "content": [{"type": "text"}]}], [SimpleNamespace(role="user", content="hi")],
    ],
)  # fmt: skip
def test_odd_messages_say_which_and_what_is_wanted(messages):
    with pytest.raises(ValueError, match=r"conversation|content|role|message|text") as caught:
        conversations(messages)
    assert "\n" not in str(caught.value)
