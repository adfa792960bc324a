"""The two limits of this machine, measured in the same run and with the same threads as everything else.

Reading: the fastest of a few ways to read memory as large as the weights, so that a cache which holds part of them
counts for both. torch's own reductions leave up to a third of the bandwidth unused, so the kernels' reader is among
them. Arithmetic: a large matrix product. This file is *not* about what a pass needs (`ideal`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_COLUMNS = 4096
_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class MachineLimits:
    """What the machine does at most."""

    read: float
    """Bytes read per second."""
    multiply: float
    """Multiply-accumulates per second."""

    @classmethod
    def median(cls, rounds: Sequence[MachineLimits]) -> MachineLimits:
        """The middle of several measurements: a shared machine's bandwidth moves by a quarter within an hour."""
        return cls(median(r.read for r in rounds), median(r.multiply for r in rounds))

    def to_json(self) -> dict[str, float]:
        return {"read_gigabytes_per_second": self.read / 1e9, "gigamacs_per_second": self.multiply / 1e9}


class Gauge:
    """Measures both limits again and again, without making its buffers anew.

    size: bytes to read, best those of the weights; dtype: of the matrix product; reader: another way to read a
    tensor, beside torch's reductions: the limit is what the fastest of them does.
    """

    def __init__(
        self,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
        times: int = 3,
        reader: Callable[[Tensor], Any] | None = None,
    ):
        rows = max(size // (4 * _COLUMNS), 16)
        # ones, not zeros: pages that were never written are all the same page of memory
        self._memory = torch.ones(rows, _COLUMNS, device=device)
        self._vector = torch.ones(_COLUMNS, device=device)
        side = _SIDE.get(device.type, 2048)
        generator = torch.Generator().manual_seed(0)
        self._left, self._right = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
        self._clock, self._times, self._device = clock, times, device
        self._readers: list[Callable[[], Any]] = [lambda: torch.mv(self._memory, self._vector), self._memory.sum]
        if reader is not None:
            self._readers.append(lambda: reader(self._memory))

    def __call__(self) -> MachineLimits:
        """The fastest of a few tries of each."""
        size = self._memory.numel() * self._memory.element_size()
        reading = min(self._fastest(reader) for reader in self._readers)
        multiplying = self._fastest(lambda: F.linear(self._left, self._right))
        return MachineLimits(size / reading, self._left.shape[0] ** 3 / multiplying)

    def _fastest(self, run: Callable[[], Any]) -> float:
        times = []
        for _ in range(self._times):
            start = self._clock()
            run()
            wait_for(self._device)
            times.append(self._clock() - start)
        return max(min(times), 1e-12)


def wait_for(device: torch.device) -> None:
    """Return when the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
