"""The figures of every scored pass of a text, and their means over groups of passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from depthdial.maps.interval import clustered_mean


@dataclass(frozen=True)
class Summary:
    """Means over one group of passes. Intervals are halves of 95 %, over rows (see `maps.interval`)."""

    tokens: int
    cost: float
    layers: float
    ce: float
    """Nats per token."""
    base_ce: float
    ratio: float
    """Perplexity relative to the base's."""
    ratio_low: float
    ratio_high: float
    kl: float
    """KL(base || model), nats per token."""
    kl_half: float
    agreement: float
    """Share of tokens at which the base's first choice is the model's."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.ce)


@dataclass(frozen=True)
class Scores:
    """Every scored pass of a text at one setting; all [N], in the order of the rows, on the CPU."""

    ce: Tensor
    base_ce: Tensor
    kl: Tensor
    agree: Tensor
    cost: Tensor
    layers: Tensor
    row: Tensor
    """int64: number of the row."""

    def summary(self, where: Tensor | None = None) -> Summary:
        """Means over all passes, or over those `where` (bool [N]) is true."""
        every = torch.ones_like(self.row, dtype=torch.bool) if where is None else where
        row = self.row[every]
        more, kl = clustered_mean((self.ce - self.base_ce)[every], row), clustered_mean(self.kl[every], row)
        ce, base_ce, cost, layers, agree = (
            float(x[every].double().mean()) for x in (self.ce, self.base_ce, self.cost, self.layers, self.agree)
        )
        return Summary(
            tokens=int(every.sum()),
            cost=cost,
            layers=layers,
            ce=ce,
            base_ce=base_ce,
            ratio=math.exp(more.mean),
            ratio_low=math.exp(more.mean - more.half),
            ratio_high=math.exp(more.mean + more.half),
            kl=kl.mean,
            kl_half=kl.half,
            agreement=agree,
        )
