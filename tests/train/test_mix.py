"""Micro-batches of several kinds: shares, epochs, and an order that a resumed run finds again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from depthdial.train.encode import Document
from depthdial.train.mix import Kind, Mix
from depthdial.train.pack import PackedDataset, pack


def rows(count: int, first: int, length: int = 8) -> PackedDataset:
    """`count` rows, each of one document whose first token is its number; row i writes 1 + i % 5 tokens."""
    documents = []
    for i in range(count):
        target = np.zeros(length, bool)
        target[-(1 + i % 5) :] = True
        documents.append(Document(np.array([first + i, *range(3, 2 + length)], np.int32), target))
    return pack(documents, length)


def firsts(batch: dict[str, torch.Tensor]) -> list[int]:
    return batch["input_ids"][:, 0].tolist()


@pytest.fixture
def mix() -> Mix:
    return Mix(
        [Kind.fixed(rows(20, 100), 0.7, True), Kind.fixed(rows(6, 200), 0.3, False)], batch=2, samples=200, seed=3
    )


def test_a_micro_batch_is_of_one_kind_and_kinds_keep_their_shares(mix: Mix):
    full = [bool(item["read_in_full"]) for item in (mix[i] for i in range(len(mix)))]
    for i in range(len(mix)):
        assert all((row < 200) == full[i] for row in firsts(mix[i]))
    assert 0.6 < np.mean(full) < 0.8


def test_each_kind_sees_each_row_once_an_epoch(mix: Mix):
    calls = [row for i in range(len(mix)) if not mix[i]["read_in_full"] for row in firsts(mix[i])]
    epochs = [tuple(calls[i : i + 6]) for i in range(0, len(calls) - 5, 6)]
    assert len(epochs) > 5 and all(sorted(epoch) == list(range(200, 206)) for epoch in epochs)
    assert len(set(epochs)) > 1, "the order changes from epoch to epoch"


def test_a_place_gives_the_same_rows_whatever_was_read_before(mix: Mix):
    again = Mix(mix.kinds, batch=2, samples=200, seed=3)
    other = Mix(mix.kinds, batch=2, samples=200, seed=4)
    assert firsts(again[150]) == firsts(mix[150])
    assert [firsts(again[i]) for i in range(60)] == [firsts(mix[i]) for i in range(60)]
    assert [firsts(other[i]) for i in range(60)] != [firsts(mix[i]) for i in range(60)]


def test_rows_that_write_alike_stand_together(mix: Mix):
    apart = [
        np.ptp((item["labels"] != -100).sum(-1).numpy())
        for item in map(mix.__getitem__, range(50))
        if item["read_in_full"]
    ]
    assert np.mean(apart) < 0.5  # two rows at random: 1.6


def test_rows_may_change_on_the_way():
    stages = [rows(4, 100), rows(4, 200)]
    mix = Mix([Kind(lambda index: stages[index >= 10], 1.0, True)], batch=2, samples=20)
    assert all(row < 200 for i in range(10) for row in firsts(mix[i]))
    assert all(row >= 200 for i in range(10, 20) for row in firsts(mix[i]))


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="fills 3 rows, less than a batch of 4"):
        Mix([Kind.fixed(rows(3, 100), 1.0, True)], batch=4, samples=1)[0]
