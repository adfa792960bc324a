"""Prompt files, and what is said of bad ones."""

from __future__ import annotations

import json
import re

import pytest

from depthdial.maps.prompts import Prompt, PromptFile


def file_of(folder, *rows, name="prompts.jsonl"):
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_become_prompts(tmp_path):
    talk = [{"role": "user", "content": "hi"}]
    path = file_of(
        tmp_path,
        {"prompt": "a", "other": 1},
        "",
        {"id": 7, "prompt": "b", "task": "sum", "group": "g", "completion": " = 4"},
        {"messages": talk, "id": "talk"},
    )
    assert list(PromptFile(path)) == [
        Prompt("prompts-1", "a", "prompts"),
        Prompt("7", "b", "sum", "g", " = 4"),
        Prompt("talk", task="prompts", messages=(talk[0],)),
    ]
    assert PromptFile(path).total == 3


def test_lines_of_text_are_prompts(tmp_path):
    path = file_of(tmp_path, "the fox", "", "the dog ", name="some.txt")
    assert [p.prompt for p in PromptFile(path)] == ["the fox", "the dog "]
    assert [p.id for p in PromptFile(path)] == ["some-1", "some-3"]


def test_lines_are_counted_as_they_are_read(tmp_path):
    """A lone carriage return ends no line, and a line of other white space is none: the last prompt was lost once."""
    path = tmp_path / "odd.txt"
    path.write_bytes("the\rfox\r\n\u00a0\nthe dog\n".encode())
    result = PromptFile(path)
    assert [p.prompt for p in result] == ["the\rfox", "the dog"] and result.total == 2


def test_ids_are_different(tmp_path):
    with pytest.raises(ValueError, match="two prompts have the id '7'"):
        PromptFile(file_of(tmp_path, {"id": 7, "prompt": "a"}, {"id": "7", "prompt": "b"}))


def test_a_source_is_known_by_its_content(tmp_path):
    first, second = file_of(tmp_path, "a", name="a.txt"), file_of(tmp_path, "b", name="b.txt")
    same = (tmp_path / "x").joinpath("a.txt")
    same.parent.mkdir()
    same.write_text("a\n")
    assert PromptFile(first).identity == PromptFile(same).identity != PromptFile(second).identity
    assert str(tmp_path) not in json.dumps(PromptFile(first).identity)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", r"line 2 is not JSON"),
        ("[" * 99999, r"line 2 is not JSON"),
        ("[1]", r"line 2 is not an object"),
        ({"text": "a"}, r"line 2 has no `prompt` \(and no `messages`\); it has text"),
        ({"prompt": "  "}, r"line 2 has no `prompt`"),
        ({"prompt": 3}, r"line 2: `prompt` must be a string, not int"),
        ({"prompt": "a", "answer": ["b"]}, r"line 2: `answer` must be a string, not list"),
        ({"prompt": "a", "messages": []}, r"line 2 has `messages` and `prompt`"),
        ({"messages": []}, r"line 2: `messages` must be a list"),
        ({"prompt": "a", "answer": ""}, r"line 2: the answer is empty"),
        ('{"prompt": "\\ud800"}', r"line 2 holds .*half a character"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', r"line 2 holds .*half a character"),
        ({"messages": [{"role": "user"}]}, r"line 2: `messages` must be a list"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, said):
    path = file_of(tmp_path, {"prompt": "fine"}, row)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ", " + said):
        PromptFile(path)  # before any model is loaded or any part is made


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.txt", "A.TXT"])
def test_byte_order_marks_and_endings_in_any_case(tmp_path, name):
    row = "the fox" if name.lower().endswith("txt") else json.dumps({"prompt": "the fox"})
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\n")
    assert [prompt.prompt for prompt in PromptFile(tmp_path / name)] == ["the fox"]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file of prompts"):
        PromptFile(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"\.jsonl or \.txt"):
        PromptFile(file_of(tmp_path, "a", name="a.csv"))
    with pytest.raises(ValueError, match="holds no prompt"):
        PromptFile(file_of(tmp_path, "", name="empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        list(PromptFile(tmp_path / "latin.txt"))
