"""Prompts for generated text, taken from records as a user would write them."""

import pytest

from depthdial.engine.llm import LLM
from depthdial.train.data import Record
from depthdial.train.generated import _prompts
from depthdial.train.messages import Message, turn

SYSTEM: Message = {"role": "system", "content": "be brief"}


def test_a_prompt_is_the_first_question_after_what_stands_before_it(tiny_model, tiny_tokenizer, adaptive):
    llm = LLM.of(adaptive(tiny_model()), tiny_tokenizer)
    records = [
        Record("a", (SYSTEM, *turn("the fox", "x"), *turn("and", "y"))),
        Record("b", tuple(turn("x", "no question")[1:])),
        Record("c", text="the quick fox"),
        Record("d", tuple(turn("the fox <|im_end|>", "x"))),
    ]
    asked = [[SYSTEM, *turn("the fox", "")[:1]], turn("the fox <|im_end|>", "")[:1]]
    one, two, three = _prompts(llm, records, 4)
    assert [one, three] == [llm.chat_tokens(messages) for messages in asked]
    assert two == tiny_tokenizer("the quick fox")["input_ids"]
    with pytest.raises(ValueError, match="short enough"):
        _prompts(llm, records[1:2], 4)
