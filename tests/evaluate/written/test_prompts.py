"""The prompts that come along, files of one's own, and how they become tokens."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from depthdial.engine.llm import LLM
from depthdial.evaluate.written.prompts import digest_of, prompt_tokens, prompts_of, source_name, text_of
from depthdial.methods import Dense
from depthdial.models import convert


@pytest.fixture
def llm(tiny_model, tiny_tokenizer):
    return LLM.of(convert(tiny_model("llama"), Dense()), tiny_tokenizer)


def test_four_hundred_short_prompts_of_ten_kinds_come_along():
    prompts = prompts_of("default")
    assert Counter(Counter(p.task for p in prompts).values()) == {40: 10} and len({p.prompt for p in prompts}) == 400
    assert max(len(p.prompt) for p in prompts) < 600 and source_name("default") == "default"


def test_a_limit_takes_of_every_kind_alike():
    result = prompts_of("default", 24)
    assert sorted(Counter(p.task for p in result).values()) == [2] * 6 + [3] * 4
    assert result == [p for p in prompts_of("default") if p in result], "in the order of the file"
    assert len(prompts_of("default", 5000)) == 400


def test_prompts_stand_in_the_models_template(llm, tmp_path, tiny_tokenizer):
    file = tmp_path / "own.jsonl"
    talk = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "the dog"}]
    rows = [{"prompt": "the quick"}, {"prompt": "the", "answer": "fox"}, {"messages": talk}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = prompts_of(str(file))
    facts = [tiny_tokenizer.decode(ids) for ids in prompt_tokens(prompts, llm, 8)]
    start = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert facts == [start.format(request) for request in ("the quick", "the", "the fox")], "no answer is read"
    assert [text_of(p) for p in prompts] == ["the quick", "the", "user: the fox"]
    assert source_name(str(file)) == "own.jsonl" and digest_of(str(file)) != digest_of("default")


def test_without_a_template_they_stand_alone(llm, prompt_file, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    prompts = prompts_of(str(prompt_file), 1)
    assert prompt_tokens(prompts, llm, 8) == [tiny_tokenizer(prompts[0].prompt)["input_ids"]]


def test_what_is_too_long_is_said(llm, prompt_file):
    prompts = prompts_of(str(prompt_file), 1)
    with pytest.raises(ValueError, match=r"prompt 'own-1' has \d+ tokens, and the model's context of 128 .* --max-tok"):
        prompt_tokens(prompts, llm, 120)
