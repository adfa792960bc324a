"""Packed rows for tiny models: two or more documents side by side."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def packed_batches() -> Callable[..., list[Batch]]:
    """`packed_batches(count, rows, length)`: random tokens, documents of `length` // 2, everything a target."""

    def make(count: int = 3, rows: int = 2, length: int = 24, seed: int = 0) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        batches = []
        for _ in range(count):
            ids = torch.randint(3, 300, (rows, length), generator=generator)
            positions = torch.arange(length).remainder(length // 2).expand(rows, length).clone()
            batches.append(
                {"input_ids": ids, "labels": ids.masked_fill(positions == 0, -100), "position_ids": positions}
            )
        return batches

    return make
