"""What may be given to `LLM`: its tokens are continued, or one ValueError says what a prompt may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from depthdial import LLM, SamplingParams

TWO = SamplingParams(max_tokens=2)


@pytest.fixture(scope="module")
def llm(tiny_folder) -> LLM:
    return LLM(str(tiny_folder), None, dtype="float32", device="cpu")


def test_all_that_holds_tokens_is_continued_alike(llm):
    tokens = llm.tokenizer("hello")["input_ids"]
    (wanted,) = llm.generate([tokens], TWO)
    for prompt in (
        llm.tokenizer("hello"),
        llm.tokenizer("hello", return_tensors="pt"),
        llm.tokenizer(["hello"], return_tensors="np"),
        {"input_ids": tokens},
        np.array(tokens),
        [np.array(tokens)],
        torch.tensor([tokens]),
        [np.int64(token) for token in tokens],
        iter(tokens),
    ):
        given: Any = prompt
        (out,) = llm.generate(given, TWO)
        assert (out.prompt_token_ids, out.token_ids) == (wanted.prompt_token_ids, wanted.token_ids), type(prompt)


def test_padded_rows_are_read_without_their_padding(llm):
    llm.tokenizer.pad_token = llm.tokenizer.pad_token or llm.tokenizer.eos_token
    for side in ("left", "right"):
        llm.tokenizer.padding_side = side
        rows: Any = llm.tokenizer(["hello", "a much longer text"], padding=True, return_tensors="pt")
        apart = llm.generate(["hello", "a much longer text"], TWO)
        together = llm.generate(rows, TWO)
        assert [out.prompt_token_ids for out in together] == [out.prompt_token_ids for out in apart]


def test_texts_of_an_iterator(llm):
    texts: Any = iter(["a", "b"])
    assert [out.prompt for out in llm.generate(texts, TWO)] == ["a", "b"]


@pytest.mark.parametrize("prompt", [b"hello", None, "a\ud83d", {"text": "a"}, [None], 7])
@pytest.mark.parametrize("how", ["generate", "stream", "submit"])
def test_what_is_no_prompt_is_a_line_that_says_what_one_is(llm, prompt, how):
    with pytest.raises(ValueError, match=r"a prompt is a text, or|half a character") as caught:
        getattr(llm, how)(prompt, TWO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("params", [{"max_tokens": 2}, "greedy", 5, [None]])
def test_what_are_no_sampling_parameters(llm, params):
    with pytest.raises(ValueError, match=r"params is SamplingParams\(\.\.\.\)"):
        llm.generate(["hi"], params)


def test_chat_messages_in_parts_are_their_text(llm):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    plain = llm.chat([{"role": "user", "content": "hi"}], TWO)[0]
    assert llm.chat([{"role": "user", "content": parts}], TWO)[0].prompt_token_ids == plain.prompt_token_ids
    for odd in (
        "hi",
        [{"content": "hi"}],
        [{"role": "user", "content": None}],
        {"role": "user", "content": "hi"},
        [["hi"]],
    ):
        messages: Any = odd
        with pytest.raises(ValueError, match=r"conversation|content|role"):
            llm.chat(messages, TWO)


def test_numbers_and_minus_one(llm):
    drawn = {"max_tokens": 4, "temperature": 1.0}
    texts = [
        llm.generate("hi", SamplingParams(**{**drawn, **more}))[0].token_ids
        for more in ({"seed": np.int64(3), "temperature": np.float32(1.0)}, {"seed": 3}, {"seed": 3, "top_k": -1})
    ]
    assert texts[0] == texts[1] == texts[2]
    assert llm.generate("hi", SamplingParams(**drawn, seed=-1))[0].token_ids == (
        llm.generate("hi", SamplingParams(**drawn, seed=2**64 - 1))[0].token_ids
    )


@pytest.mark.parametrize("options", [{"max_modal_len": 3}, {"max_batches": 2}])
def test_an_unknown_argument_of_llm_is_answered_with_its_own(tiny_folder, options):
    with pytest.raises(ValueError, match=r"LLM has no argument 'max_.*(did you mean max_batch\?|it takes)"):
        LLM(str(tiny_folder), None, **options)
