"""Rows of tokens from memory-mapped shards, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from depthdial.train.shards import Index, Side, shard_path


class Rows(Dataset[dict[str, Tensor]]):
    """`samples` rows of `length` tokens: epoch after epoch, each row once an epoch, without replacement.

    Sample n is row order(seed, n // rows)[n % rows] of the shards read as one stream, so a run that is told how many
    samples it has seen goes on exactly, on any number of processes. seed None keeps the order of the stream (held-out
    text). Raises ValueError when the shards fill less than `least` rows.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        side: Side,
        length: int,
        *,
        seed: int | None = None,
        samples: int | None = None,
        least: int = 1,
    ):
        self.length, self.seed, self.side = length, seed, side
        self.rows = index.tokens(side) // length
        if self.rows < least:
            raise ValueError(
                f"the data fills {self.rows} rows of {length} tokens, less than a batch of {least}; "
                "give more data, or a lower --batch or --length"
            )
        self.samples = self.rows if samples is None else samples
        counts = [shard.train if side == "train" else shard.heldout for shard in index.shards]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._maps = [
            np.memmap(shard_path(folder, number, side), index.dtype, "r") if count else np.empty(0, index.dtype)
            for number, count in enumerate(counts)
        ]
        self._order = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """{"input_ids", "labels"}: the same int64 [length]; whoever computes the loss shifts."""
        if not 0 <= sample < self.samples:
            raise IndexError(sample)
        ids = torch.from_numpy(self.tokens(self._row(sample)))
        return {"input_ids": ids, "labels": ids.clone()}

    def tokens(self, row: int) -> np.ndarray:
        """Row number `row` of the stream, int64 [length]; it may go from one shard into the next."""
        begin, end = row * self.length, (row + 1) * self.length
        first = int(np.searchsorted(self._starts, begin, "right")) - 1
        last = int(np.searchsorted(self._starts, end, "left"))
        pieces = []
        for shard in range(first, last):
            start = int(self._starts[shard])
            pieces.append(self._maps[shard][max(begin - start, 0) : end - start])
        return np.concatenate(pieces).astype(np.int64)

    def _row(self, sample: int) -> int:
        epoch, place = divmod(sample, self.rows)
        if self.seed is None:
            return place
        if self._order[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._order = (epoch, generator.permutation(self.rows))
        return int(self._order[1][place])
