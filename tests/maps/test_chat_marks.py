"""What the template wrote is found in tokens; answers are exactly what training takes for them."""

from __future__ import annotations

import pytest

from depthdial.maps.chat_marks import ChatMarks
from depthdial.train.data import Record
from depthdial.train.encode import encode

TURNS = (
    {"role": "user", "content": "the quick fox"},
    {"role": "assistant", "content": "jumps over"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "the lazy dog"},
)
WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are brown<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(params=["plain", "system"])
def tokenizer(request, tiny_tokenizer, monkeypatch):
    if request.param == "system":
        monkeypatch.setattr(tiny_tokenizer, "chat_template", WITH_SYSTEM)
    return tiny_tokenizer


@pytest.mark.parametrize("turns", [2, 4])
def test_answers_are_the_targets_of_training(tokenizer, turns):
    encoded = encode(Record("test", TURNS[:turns]), tokenizer, targets="assistant")
    text, answer = ChatMarks(tokenizer).find(encoded.input_ids.tolist())
    assert [place is not None for place in answer] == encoded.target.tolist()
    assert sum(place == 0 for place in answer) == turns // 2
    assert not any(w and place is not None for w, place in zip(text, answer, strict=True))


@pytest.mark.parametrize("turns", [2, 4])
def test_what_the_template_did_not_write_are_the_contents(tokenizer, turns):
    ids = encode(Record("test", TURNS[:turns]), tokenizer).input_ids.tolist()
    text, _ = ChatMarks(tokenizer).find(ids)
    rest = tokenizer.decode([i for i, w in zip(ids, text, strict=True) if not w])
    assert rest == "".join(m["content"] + "<|im_end|>" * (m["role"] == "assistant") for m in TURNS[:turns])


def test_a_piece_cut_from_a_conversation(tokenizer):
    ids = encode(Record("test", TURNS), tokenizer).input_ids.tolist()
    start = ids.index(tokenizer.eos_token_id, 3) + 1
    text, answer = ChatMarks(tokenizer).find(ids[start:-4])  # begins inside the mark, ends inside an answer
    assert answer[-1] is not None and text[-1] is False


def test_plain_text_and_tokenizers_without_template(tiny_tokenizer, monkeypatch):
    ids = tiny_tokenizer.encode("the quick brown fox", add_special_tokens=False)
    assert ChatMarks(tiny_tokenizer).find(ids) == ([False] * len(ids), [None] * len(ids))
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    assert ChatMarks(tiny_tokenizer).find([1, 2, 1]) == ([False] * 3, [None] * 3)
