"""Prompts to a folder of parts, with real passes of a tiny model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from depthdial.engine.sampling import SamplingParams
from depthdial.maps.folder import MapFolder, map_identity
from depthdial.maps.mapping import Mapper, MapSettings, MapShard, make
from depthdial.maps.prompts import Prompt
from depthdial.maps.store import read_map
from depthdial.maps.tasks import Tasks

TALK = ({"role": "user", "content": "the fox"}, {"role": "assistant", "content": "brown"})


@pytest.fixture(scope="module")
def mapper(tiny_converted, tiny_tokenizer):
    return Mapper(tiny_converted, tiny_tokenizer, "tiny", None, MapSettings(max_new_tokens=4, part_size=3))


def with_settings(mapper, **changes):
    settings = dataclasses.replace(mapper.settings, **changes)
    return Mapper(mapper.llm.model, mapper.tokenizer, "tiny", None, settings)


def test_what_is_given_is_forced_and_the_rest_is_generated(mapper, tiny_tokenizer):
    prompts = [Prompt("a", "the quick"), Prompt("b", "2 + 2", answer=" = 4"), Prompt("c", messages=TALK)]
    texts = mapper.texts(prompts)
    ids = tiny_tokenizer.encode("the quick")
    (output,) = mapper.llm.generate([ids], SamplingParams(max_tokens=4))
    assert texts[0].ids == ids + output.token_ids and not texts[0].forced
    assert tiny_tokenizer.decode(texts[1].ids) == "2 + 2 = 4" and texts[1].forced
    answers = [
        tiny_tokenizer.decode([i for i, mark in zip(text.ids, text.generated, strict=True) if mark]) for text in texts
    ]
    assert answers[1:] == [" = 4", "brown<|im_end|>"]


def test_an_open_conversation_is_answered(mapper):
    (text,) = mapper.texts([Prompt("c", messages=TALK[:1])])
    assert 0 < sum(text.generated) <= 4 and not text.forced
    (plain,) = with_settings(mapper, max_new_tokens=0).texts([Prompt("c", messages=TALK[:1])])
    assert not any(plain.generated)


def test_chat_puts_prompts_into_the_template(mapper, tiny_tokenizer):
    (text,) = with_settings(mapper, chat=True, max_new_tokens=0).texts([Prompt("a", "the fox")])
    assert tiny_tokenizer.decode(text.ids) == "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"


def test_rows_keep_the_order_and_names_of_prompts(mapper):
    prompts = list(Tasks(["repeat", "add"], count=3))
    rows = mapper.rows(prompts)
    assert [(row.id, row.task, row.group, row.forced) for row in rows] == [
        (p.id, p.task, p.group, True) for p in prompts
    ]
    assert all(row.layers_used.min() >= 2 for row in rows)


def test_a_part_does_not_depend_on_the_parts_before_it(tiny_converted, tiny_tokenizer):
    settings = MapSettings(max_new_tokens=6)
    prompts = [Prompt(str(i), f"the quick brown fox {i}") for i in range(6)]
    after = Mapper(tiny_converted, tiny_tokenizer, "tiny", None, settings)
    after.rows(prompts[:3])
    fresh = Mapper(tiny_converted, tiny_tokenizer, "tiny", None, settings)
    for a, b in zip(after.rows(prompts[3:]), fresh.rows(prompts[3:]), strict=True):
        assert a.ran is not None and b.ran is not None and a.entropy is not None and b.entropy is not None
        assert a.pieces == b.pieces and np.array_equal(a.entropy, b.entropy) and np.array_equal(a.ran, b.ran)


def test_long_texts_are_refused_or_cut(mapper):
    long = Prompt("long", "dog " * 400)
    with pytest.raises(ValueError, match=r"prompt 'long' has \d+ tokens.* room for 124 beside .*--truncate"):
        mapper.texts([long])
    (text,) = with_settings(mapper, truncate=True).texts([long])
    assert len(text.ids) <= 128 and sum(text.generated) >= 1
    (forced,) = with_settings(mapper, truncate=True).texts([dataclasses.replace(long, answer=" fox")])
    assert len(forced.ids) == 128


def test_a_given_answer_is_never_written_anew(mapper, monkeypatch):
    long = (dict(TALK[0], content="dog " * 400), TALK[1])
    with pytest.raises(ValueError, match="conversation 'c': no token of its answer"):
        with_settings(mapper, truncate=True).texts([Prompt("c", messages=long)])
    monkeypatch.setattr("depthdial.maps.chat_marks._frame", lambda tokenizer: None)  # a template that edits contents
    with pytest.raises(ValueError, match="give `prompt` and `answer` instead"):
        mapper.texts([Prompt("c", messages=TALK)])


def test_what_failed_is_not_kept(mapper, monkeypatch, tmp_path):
    tasks = Tasks(["continue"], count=2, text="A b c. " * 12)
    folder = MapFolder(
        tmp_path / "map", map_identity(mapper.recorder.facts, "b4", tasks.identity, mapper.settings.identity)
    )
    generate = mapper.llm.generate

    def failing(*args):
        outputs = generate(*args)
        sample = dataclasses.replace(outputs[1].samples[0], error="out of memory", finish_reason="error")
        return [outputs[0], dataclasses.replace(outputs[1], samples=[sample])]

    monkeypatch.setattr(mapper.llm, "generate", failing)
    with pytest.raises(ValueError, match=r"generating failed \(out of memory\); go on with --resume"):
        make(tasks, mapper, folder)
    assert not folder.parts


def test_what_a_template_refuses_is_named(mapper, monkeypatch):
    monkeypatch.setattr(mapper.tokenizer, "chat_template", "{{ raise_exception('no system here') }}")
    with pytest.raises(ValueError, match=r"conversation 'c': .*refuses it \(no system here\)"):
        mapper.texts([Prompt("c", messages=TALK[:1])])


def test_the_marks_of_a_template_in_a_message_are_text(mapper):
    ends = mapper.tokenizer.convert_tokens_to_ids("<|im_end|>")
    talk = [{**message, "content": f"{message['content']}<|im_end|>"} for message in TALK]
    for turns in (talk, talk[:1]):
        (text,) = mapper.texts([Prompt("c", messages=tuple(turns))])
        assert list(text.ids[: len(text.ids)]).count(ends) <= len(turns) + 1
        assert "<|im_end|><|im_end|>" in mapper.tokenizer.decode(text.ids)


def test_more_alternatives_than_tokens_are_refused(mapper):
    with pytest.raises(ValueError, match="alternatives must be at most"):
        with_settings(mapper, alternatives=10**6)


def test_empty_answers_are_refused(mapper):
    with pytest.raises(ValueError, match="empty answer; leave it out"):
        mapper.texts([Prompt("a", "b", answer="")])


def test_shards_make_the_same_parts(mapper, tmp_path):
    tasks = Tasks(["repeat", "add"], count=5)
    facts = map_identity(mapper.recorder.facts, "b4", tasks.identity, mapper.settings.identity)
    whole = MapFolder(tmp_path / "whole", facts)
    done = make(tasks, mapper, whole)
    assert (done.texts, done.parts, len(whole.parts)) == (10, 4, 4) and (whole.path / "README.md").is_file()
    for number in (1, 2):
        shard = MapShard(number, 2)
        shared = MapFolder(tmp_path / "shared", facts, mine=shard.parts(4))
        assert make(tasks, mapper, shared, shard).parts == 2
        assert (shared.path / "README.md").is_file() == (number == 2)
    assert [p.read_bytes() for p in shared.parts] == [p.read_bytes() for p in whole.parts]


def test_a_card_tells_what_is_there(mapper, tmp_path):
    tasks = Tasks(["repeat", "continue"], count=2, text="A b c. " * 12)
    folder = MapFolder(
        tmp_path / "map", map_identity(mapper.recorder.facts, "b4", tasks.identity, mapper.settings.identity)
    )
    done = make(tasks, mapper, folder, licence="apache-2.0")
    card, result = (folder.path / "README.md").read_text(), read_map(folder.path)
    assert card.startswith("---\nlicense: apache-2.0\n") and "data_files: data/*.parquet" in card
    assert f"4 texts, {done.tokens:,} tokens" in card and "| given |" in card and "| drawn |" in card
    assert f"Mean layers used: {np.concatenate([row.layers_used for row in result.rows]).mean():.2f}" in card


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_bad_shards_are_refused(text):
    with pytest.raises(ValueError, match="must be i/n"):
        MapShard.parse(text)


def test_bad_settings_are_refused():
    assert MapShard.parse("2/4").parts(10) == range(1, 10, 4)
    with pytest.raises(ValueError, match="part_size must be at least 1, not 0"):
        MapSettings(part_size=0)
