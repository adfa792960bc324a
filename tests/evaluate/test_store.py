"""Chunks on disk: kept as they come, read back exactly, whatever the end of the file looks like."""

from __future__ import annotations

import pytest

from depthdial.evaluate.store import Store, key_of


def never():
    raise AssertionError("this chunk is known")


def test_a_chunk_is_made_once_and_read_back_exactly(tmp_path):
    facts = [[("text é\n", 1 / 3, True), (-1e-300, [2, 3])]]
    first = Store(tmp_path / "new" / "a.jsonl").get("k", lambda: facts)
    assert Store(tmp_path / "new" / "a.jsonl").get("k", never) == first
    assert first[0] == [[["text é\n", 1 / 3, True], [-1e-300, [2, 3]]]]
    assert len(first[1]) == 2 and all(seconds >= 0 for seconds in first[1])


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_cut_off_is_not_there_and_hurts_no_other(tmp_path, cut):
    file = tmp_path / "a.jsonl"
    store = Store(file)
    for key in "abc":
        store.get(key, lambda key=key: [key])
    file.write_bytes(file.read_bytes()[:-cut])
    again = Store(file)
    assert again.get("a", never)[0] == ["a"] and again.get("b", never)[0] == ["b"]
    assert again.get("c", lambda: ["made again"])[0] == ["made again"]
    assert Store(file).get("c", never)[0] == ["made again"]


def test_what_fails_is_not_kept(tmp_path):
    store = Store(tmp_path / "a.jsonl")
    with pytest.raises(KeyboardInterrupt):
        store.get("k", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not (tmp_path / "a.jsonl").exists()


def test_without_a_path_nothing_is_written():
    store = Store()
    assert store.get("k", lambda: [1]) == store.get("k", never)


def test_keys_tell_facts_apart():
    assert key_of("score", 0.1, [1, 2]) == key_of("score", 0.1, [1, 2])
    assert len({key_of("score", 0.1, [1]), key_of("score", 0.2, [1]), key_of("generate", 0.1, [1])}) == 3
