"""Rows: each once an epoch, in an order of seed and epoch alone, across the borders of shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.train.rows import Rows
from depthdial.train.shards import Index, Shard, shard_path


def folder_of(counts: list[int], folder: Path, vocabulary: int = 70_000) -> tuple[Path, Index]:
    """Shards that hold 0, 1, 2, ... as one stream."""
    shards = tuple(Shard(str(i), "", 1, n, n) for i, n in enumerate(counts))
    index = Index("", "", vocabulary, 0, 0.0, shards)
    start = 0
    for number, count in enumerate(counts):
        for side in ("train", "heldout"):
            np.arange(start, start + count).astype(index.dtype).tofile(shard_path(folder, number, side))
        start += count
    return folder, index


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6), length=st.integers(2, 12), seed=st.integers(0, 9))
def test_an_epoch_is_the_stream_once(tmp_path_factory, counts: list[int], length: int, seed: int):
    folder, index = folder_of(counts, tmp_path_factory.mktemp("rows"))
    fit = sum(counts) // length
    if not fit:
        with pytest.raises(ValueError, match="less than a batch"):
            Rows(folder, index, "train", length)
        return
    rows = Rows(folder, index, "train", length, seed=seed, samples=2 * fit)
    for epoch in range(2):
        calls = [rows[epoch * fit + i]["input_ids"].tolist() for i in range(fit)]
        assert sorted(token for row in calls for token in row) == list(range(fit * length))
        assert all(row == list(range(row[0], row[0] + length)) for row in calls)
    with pytest.raises(IndexError):
        rows[2 * fit]


def test_the_order_is_of_seed_and_epoch_alone(tmp_path: Path):
    folder, index = folder_of([300, 200], tmp_path)

    def firsts(seed: int, samples: range) -> list[int]:
        rows = Rows(folder, index, "train", 5, seed=seed, samples=200)
        return [int(rows[i]["input_ids"][0]) for i in samples]

    whole = firsts(3, range(200))
    assert firsts(3, range(120, 200)) == whole[120:], "a resumed run sees what the first would have seen"
    assert firsts(3, range(199, -1, -1)) == whole[::-1], "whatever was asked for before"
    assert whole[:100] != whole[100:] and firsts(4, range(100)) != whole[:100]
    content = Rows(folder, index, "heldout", 5)
    assert [int(content[i]["input_ids"][0]) for i in range(3)] == [0, 5, 10]


def test_both_sizes_of_number_are_read(tmp_path: Path):
    for vocabulary in (100, 70_000):
        place = tmp_path / str(vocabulary)
        place.mkdir()
        folder, index = folder_of([50], place, vocabulary)
        assert Rows(folder, index, "train", 10)[4]["labels"].tolist() == list(range(40, 50))
