"""The generators of prompts."""

from __future__ import annotations

import re

import pytest

from depthdial.maps.tasks import LEAST, MOST, TASKS, Tasks, passages


def test_the_same_seed_gives_the_same_prompts():
    first, again, other = (list(Tasks(count=5, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == Tasks(count=5).total == 30 and len({prompt.id for prompt in first}) == 30
    assert {prompt.task for prompt in first} == set(TASKS)


def test_tasks_of_a_kind_share_their_material():
    prompts = list(Tasks(count=8))
    for kind in (TASKS[:3], TASKS[3:]):
        groups = [[p.group for p in prompts if p.task == task] for task in kind]
        assert groups[0] == groups[1] == groups[2]


def test_the_answers_are_right():
    for prompt in Tasks(["add", "multiply", "repeat"], count=40):
        assert prompt.answer is not None
        numbers = [int(n) for n in re.findall(r"\d+", prompt.prompt)]
        assert 2 <= len(numbers) <= 5
        if prompt.task == "repeat":
            assert prompt.answer == ", ".join(map(str, numbers))
            continue
        sign = {"add": "+", "multiply": "×"}[prompt.task]
        left, _, right = prompt.answer.partition(" = ")
        assert [int(n) for n in left.split(f" {sign} ")] == numbers
        assert int(right) == eval(left.replace("×", "*"))


def test_text_tasks_leave_the_answer_open_and_use_a_passage_once():
    tasks = Tasks(["copy"], count=10**6)
    prompts = list(tasks)
    assert len(prompts) == tasks.total == len(tasks.passages) == len({p.prompt for p in prompts})
    assert all(prompt.answer is None for prompt in prompts)


def test_passages_are_whole_sentences_of_one_paragraph():
    result = Tasks().passages
    assert len(result) > 100 and len({paragraph for paragraph, _ in result}) > 40
    for _, passage in result:
        assert LEAST <= len(passage.split()) <= MOST and passage[0].isupper() and passage[-1] in ".!?"


def test_own_text_can_be_given():
    sentence = "One two three four five six seven eight nine ten."
    assert passages(f"Short.\n\n{' '.join([sentence] * 4)}") == [
        (1, " ".join([sentence] * 4)),
        (1, " ".join([sentence] * 3)),
    ]
    (prompt,) = Tasks(["continue"], count=1, text=" ".join([sentence] * 3))
    assert sentence in prompt.prompt


def test_bad_words_are_refused():
    with pytest.raises(ValueError, match="unknown task 'cpoy'; the tasks are copy, summarise"):
        Tasks(["cpoy"])
    with pytest.raises(ValueError, match="each task once"):
        Tasks(["copy", "copy"])
    with pytest.raises(ValueError, match="at least 1"):
        Tasks(count=0)
    with pytest.raises(ValueError, match="no paragraph of at least 30 words"):
        Tasks(["copy"], text="too short")
    assert list(Tasks(["add"], count=1, text="too short"))
