"""Micro-batches of two forms, in one order: rows whose prompts are read in full, and rows in which every token is routed.

A micro-batch is of one form, since their passes differ in shape; rows of about the same number of written tokens stand together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from depthdial.train.pack import PackedDataset

WINDOW = 32
"""Micro-batches among which rows are sorted by their written tokens."""


class Mix(Dataset[dict[str, Tensor]]):
    """`len` micro-batches of `batch` rows: int64 [batch, T] input_ids, labels, position_ids, and bool [] read_in_full.

    full: rows whose prompts are read in full; same: rows in which every token is routed, `share` of all rows (of which
    there may be too few: then they come again). Either may be empty.
    """

    def __init__(self, full: PackedDataset | None, same: PackedDataset | None, share: float, batch: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.full, self.same = full, same
        groups: list[tuple[bool, np.ndarray]] = []
        if full is not None:
            groups += [(True, rows) for rows in _grouped(full, batch, rng)]
        if same is not None:
            every = _grouped(same, batch, rng)
            count = len(every) if full is None else round(share / (1 - share) * len(groups))
            groups += [(False, every[i % len(every)]) for i in range(count)]
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        form, members = self.groups[index]
        rows = self.full if form else self.same
        assert rows is not None
        found = [rows[int(i)] for i in members]
        return {name: torch.stack([row[name] for row in found]) for name in found[0]} | {"read_in_full": torch.tensor(form)}


def one(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The collator: an item is a micro-batch already."""
    (item,) = items
    return item


def _grouped(rows: PackedDataset, batch: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers in micro-batches; those of a window of micro-batches are sorted by how much is written in them."""
    order, written = rng.permutation(len(rows)), rows.target.sum(-1)
    groups: list[np.ndarray] = []
    for begin in range(0, len(order), batch * WINDOW):
        part = order[begin : begin + batch * WINDOW]
        part = part[np.argsort(written[part], kind="stable")]
        groups += [part[i : i + batch] for i in range(0, len(part) - batch + 1, batch)]
    return groups
