"""Micro-batches of several kinds of rows in one order: which kind comes when depends on the seed and the place alone.

A micro-batch is of one kind, since rows whose prompts are read in full are run in another shape than rows in which
every token is routed. Rows with about the same number of written tokens stand together, so that little is filled up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from depthdial.train.pack import PackedDataset

WINDOW = 32
"""Micro-batches among which rows are sorted by their written tokens."""


@dataclass(frozen=True)
class Kind:
    """Rows of one kind, and their share of all micro-batches."""

    rows: Callable[[int], PackedDataset]
    """The rows to take from for a micro-batch of a number: what a model writes itself changes as it learns."""
    share: float
    read_in_full: bool
    """Are the targets what is written, all other tokens being read by the untouched base?"""
    ready: PackedDataset | None = None
    """The rows, where they are the same for all micro-batches."""

    @classmethod
    def fixed(cls, rows: PackedDataset, share: float, read_in_full: bool) -> Kind:
        return cls(lambda _: rows, share, read_in_full, rows)


class Mix(Dataset[dict[str, Tensor]]):
    """`samples` micro-batches of `batch` rows: int64 [batch, T] input_ids, labels, position_ids, bool [] read_in_full.

    Each kind goes through its rows epoch after epoch, without replacement within one. parts: each micro-batch comes as
    so many items of equal size, for as many processes. Raises ValueError for rows that do not fill a micro-batch.
    """

    def __init__(self, kinds: Sequence[Kind], batch: int, samples: int, seed: int = 0, parts: int = 1):
        self.kinds, self.batch, self.seed, self.parts = kinds, batch, seed, parts
        for kind in kinds:
            if kind.ready is not None:
                self._enough(kind.ready)
        shares = np.array([kind.share for kind in kinds])
        draws = np.random.Generator(np.random.Philox(key=[seed, 1])).random(samples)
        self._kind = np.searchsorted((shares / shares.sum()).cumsum(), draws, side="right").clip(max=len(kinds) - 1)
        self._turn = np.zeros(samples, np.int64)
        """How often the kind of a micro-batch has come before it."""
        for number in range(len(kinds)):
            of = self._kind == number
            self._turn[of] = np.arange(of.sum())
        self._groups: dict[int, tuple[PackedDataset, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._kind) * self.parts

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        index, part = divmod(index, self.parts)
        number = int(self._kind[index])
        kind, rows = self.kinds[number], self.kinds[number].rows(index)
        groups = self._groups_of(number, rows)
        epoch, place = divmod(int(self._turn[index]), len(groups))
        order = np.random.Generator(np.random.Philox(key=[self.seed, 2 + number + len(self.kinds) * epoch]))
        size = self.batch // self.parts
        members = [rows[int(i)] for i in groups[order.permutation(len(groups))[place]][part * size : (part + 1) * size]]
        batch = {name: torch.stack([row[name] for row in members]) for name in members[0]}
        return {**batch, "read_in_full": torch.tensor(kind.read_in_full)}

    def _groups_of(self, number: int, rows: PackedDataset) -> np.ndarray:
        """Row numbers of each micro-batch, int64 [micro-batches, batch]; kept while the rows are the same."""
        groups = self._groups.get(number)
        if groups is None or groups[0] is not rows:
            self._enough(rows)
            order = np.random.Generator(np.random.Philox(key=[self.seed, 0])).permutation(len(rows))
            targets = rows.target.sum(-1)
            window = self.batch * WINDOW
            parts = (order[begin : begin + window] for begin in range(0, len(order), window))
            order = np.concatenate([part[np.argsort(targets[part], kind="stable")] for part in parts])
            whole = len(rows) // self.batch
            groups = self._groups[number] = rows, order[: whole * self.batch].reshape(whole, self.batch)
        return groups[1]

    def _enough(self, rows: PackedDataset) -> None:
        if len(rows) < self.batch:
            raise ValueError(
                f"the data fills {len(rows)} rows, less than a batch of {self.batch}; give more, or a lower --batch"
            )


def single(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The collator: an item is a micro-batch already."""
    (item,) = items
    return item
