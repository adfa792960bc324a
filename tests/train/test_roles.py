"""What is written and what is read in a document."""

from __future__ import annotations

import numpy as np

from depthdial.train.encode import Document
from depthdial.train.roles import LONGEST, SHORTEST, read_in_full


def document(length: int, targets: slice, first: int = 5) -> Document:
    target = np.zeros(length, bool)
    target[targets] = True
    return Document(np.arange(first, first + length, dtype=np.int32), target)


def test_answers_are_written_as_they_stand():
    talk = document(40, slice(20, 38))
    (result,) = read_in_full([talk])
    assert (result.target == talk.target).all()


def test_a_plain_text_is_read_up_to_a_place_of_its_own():
    texts = [document(100, slice(0, 100), first) for first in range(5, 205)]
    result = list(read_in_full(texts))
    splits = [int(np.argmax(d.target)) for d in result]
    assert all(d.target[s:].all() and not d.target[:s].any() for d, s in zip(result, splits, strict=True))
    assert min(splits) >= 100 * SHORTEST - 1 and max(splits) <= 100 * LONGEST + 1 and len(set(splits)) > 20
    # a key of its own, not a place in the order; another seed, another split
    assert [int(np.argmax(d.target)) for d in read_in_full(texts[::-1])] == splits[::-1]
    assert [int(np.argmax(d.target)) for d in read_in_full(texts, seed=1)] != splits
    assert texts[0].target.all(), "what was given stays as it is"


def test_documents_that_write_next_to_nothing_are_left_out():
    assert not list(
        read_in_full([document(200, slice(195, 200)), document(200, slice(180, 199)), document(10, slice(7, 10))])
    )
    assert len(list(read_in_full([document(40, slice(30, 39))]))) == 1
