"""Who wrote a token: the prompt is read, the answer is written, and where rows are read in full the dial acts on what
is written alone.

In such rows a target is a written token: its pass predicts the next one. Answers of conversations are written as they
stand; of a plain text a first part, of a length drawn for each document, is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from depthdial.train.encode import Document

FEWEST, SHARE = 8, 0.15
"""A document with fewer written tokens, or a smaller share of them, is not worth the reading."""
SHORTEST, LONGEST = 0.1, 0.5
"""Share of a plain text that is read, drawn evenly between these."""


def read_in_full(documents: Iterable[Document], seed: int = 0) -> Iterator[Document]:
    """Documents whose targets are what is written, without those that write next to nothing.

    documents: encoded with targets "assistant", so that a document is a plain text exactly where all of it is a target.
    """
    for document in documents:
        target = document.target
        if target[1:].all():
            target = target.copy()
            target[: _split(document, seed)] = False
        if target.sum() >= max(FEWEST, SHARE * len(target)):
            yield dataclasses.replace(document, target=target)


def _split(document: Document, seed: int) -> int:
    """Keyed by the text itself: the same in any order of documents."""
    first = [int(i) for i in document.input_ids[:64]]
    share = np.random.default_rng([seed, len(document.input_ids), *first]).uniform(SHORTEST, LONGEST)
    return max(1, round(share * len(document.input_ids)))
