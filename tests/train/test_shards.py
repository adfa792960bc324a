"""Shards hold every token once, on the right side; what does not fit is refused; an interruption costs one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthdial.train import shards
from depthdial.train.data import holdout, read
from depthdial.train.files import File
from depthdial.train.shards import make_shards, read_index, shard_path
from depthdial.train.tokenizer import END


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rows = [{"text": f"the quick brown fox number {i} jumps over the lazy dog"} for i in range(120)]
    chats = [{"question": f"What is {i} plus {i}?", "answer": f"{2 * i}"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (tmp_path / "c.txt").write_text("\n\n".join(f"Paragraph {i} of a long plain text." for i in range(2000)))
    return [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.txt")]


def stream(folder: Path, side: Any) -> list[int]:
    index = read_index(folder)
    assert index is not None
    return np.concatenate(
        [np.fromfile(shard_path(folder, i, side), index.dtype) for i in range(len(index.shards))]
    ).tolist()


def test_every_document_is_there_once_on_its_side(files: list[Path], tmp_path: Path):
    folder = tmp_path / "shards"
    index, tokenizer = make_shards(files, folder, "train:300", heldout=0.2)
    assert index.vocabulary == len(tokenizer) <= 300 and index.dtype == np.uint16
    train, held = (str(tokenizer.decode(stream(folder, side))) for side in ("train", "heldout"))
    assert index.tokens("train") == len(stream(folder, "train")) and index.tokens("heldout") > 100
    for path in files[:1]:
        for there, elsewhere, records in zip((train, held), (held, train), holdout(read(path), 0.2), strict=True):
            for record in records:
                assert f"{END}{record.text}{END}" in END + there and f"{record.text}{END}" not in elsewhere
    chats = [train.count(f"User: What is {i} plus {i}?\n\nAssistant: {2 * i}{END}") for i in range(40)]
    held_chats = [held.count(f"User: What is {i} plus {i}?\n\nAssistant: {2 * i}{END}") for i in range(40)]
    assert all(a + b == 1 for a, b in zip(chats, held_chats, strict=True))
    plain = files[2].read_text()
    pieces = [p for p in train.split(END) + held.split(END) if p.startswith(("Paragraph", " "))]
    assert sum(map(len, pieces)) == len(plain), "a long text is cut into both sides, each piece closed by a separator"


def test_the_same_folder_is_used_again_and_nothing_is_made_twice(files: list[Path], tmp_path: Path, monkeypatch: Any):
    folder = tmp_path / "shards"
    first, _ = make_shards(files, folder, "train:300")
    monkeypatch.setattr(shards, "_write", lambda *_: pytest.fail("made again"))
    for asked in ("", "train:300", str(folder / "tokenizer")):
        assert make_shards(files, folder, asked)[0] == first


def test_an_interrupted_run_goes_on_with_the_next_file(files: list[Path], tmp_path: Path, monkeypatch: Any):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    expected, _ = make_shards(files, whole, "train:300")
    write: Callable[..., Any] = shards._write

    def fail_at_second(source: File, *rest: Any) -> Any:
        if source.path == files[1]:
            raise OSError(28, "No space left on device")
        return write(source, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write", fail_at_second)
        with pytest.raises(OSError, match="No space"):
            make_shards(files, torn, "train:300")
    done = read_index(torn)
    assert done is not None and len(done.shards) == 1
    written: list[Path] = []

    def watched(source: File, *rest: Any) -> Any:
        written.append(source.path)
        return write(source, *rest)

    monkeypatch.setattr(shards, "_write", watched)
    assert make_shards(files, torn, "train:300")[0] == expected and written == files[1:]
    assert stream(torn, "train") == stream(whole, "train")


def test_what_does_not_fit_the_shards_is_refused(files: list[Path], tmp_path: Path, tiny_folder: Path):
    folder = tmp_path / "shards"
    make_shards(files, folder, "train:300")
    for other in ("train:310", str(tiny_folder)):
        with pytest.raises(ValueError, match="made with another tokenizer"):
            make_shards(files, folder, other)
    with pytest.raises(ValueError, match="other data files"):
        make_shards(files[:2], folder)
    with pytest.raises(ValueError, match="hold out"):
        make_shards(files, folder, heldout=0.1)
    files[0].write_text(json.dumps({"text": "something else"}))
    with pytest.raises(ValueError, match="other data files"):
        make_shards(files, folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(ValueError, match="not an index of shards"):
        make_shards(files, folder)


def test_a_chat_template_is_followed_and_its_documents_are_separated(
    files: list[Path], tmp_path: Path, tiny_folder: Path
):
    index, tokenizer = make_shards(files[1:2], tmp_path / "shards", str(tiny_folder), heldout=0.0)
    ids = stream(tmp_path / "shards", "train")
    assert ids.count(index.separator) == 40 and tokenizer.decode(ids).count("<|im_start|>assistant") == 40


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.sampled_from([257, 280, 400]), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_counts_are_those_of_the_files_on_disk(files, tmp_path_factory, size: int, share: float):
    folder = tmp_path_factory.mktemp("shards")
    if share == 1.0:
        files = files[:1]
    index, _ = make_shards(files, folder, f"train:{size}", heldout=share)
    assert index.tokens("train") == len(stream(folder, "train"))
    assert index.tokens("heldout") == len(stream(folder, "heldout"))
    assert (index.tokens("heldout") == 0) == (share == 0.0)


def test_rows_that_do_not_fit_stop_where_strictness_is_asked_for(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "Some words."}\n{"prompt": "alone"}\n' + '{"text": "Other words."}\n' * 9
    )
    index, _ = make_shards([tmp_path / "a.jsonl"], tmp_path / "one", "train:300")
    assert index.shards[0].documents == 10
    with pytest.raises(ValueError, match="line 2: prompt stands without answer"):
        make_shards([tmp_path / "a.jsonl"], tmp_path / "two", "train:300", strict=True)


def test_a_data_set_is_a_shard_and_goes_on(tmp_path: Path):
    datasets.Dataset.from_list([{"text": f"Words, {i} of them."} for i in range(30)]).save_to_disk(
        str(tmp_path / "words")
    )
    index, _ = make_shards([tmp_path / "words"], tmp_path / "shards", "train:300")
    assert [(shard.name, shard.documents) for shard in index.shards] == [("words", 30)]
    assert make_shards([tmp_path / "words"], tmp_path / "shards")[0] == index
