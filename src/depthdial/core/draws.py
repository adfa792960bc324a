"""Random numbers that belong to a place, never to a batch: a row draws the same alone and in company (law 10)."""

from __future__ import annotations

import torch
from torch import Tensor

from depthdial.core.decision import Site
from depthdial.core.route import Route

_MASK = (1 << 31) - 1


def drawn(seed: int, site: Site, x: Tensor, route: Route) -> Tensor:
    """A uniform number in (0, 1) for each token at a site, fp64 [B, T]. x: [B, T, d], for its shape and device.

    Keyed by (seed, layer, position), in training also by the row's key; a layer's attention and whole layer share their
    numbers, its MLP has its own.
    """
    assert route.positions is not None, "a unit hands its position ids to the route"
    sample = x.new_zeros(1, 1, dtype=torch.long) if route.sample is None else route.sample[:, None]
    layer = site.layer + (1 << 16) * (site.unit == "mlp")
    return uniform(seed, layer, sample, route.positions).expand(x.shape[:2])


def fading(progress: float, start: float, end: float) -> float:
    """1 up to the share `start` of training, 0 from `end` on, a straight line between."""
    return min(1.0, max(0.0, (end - progress) / (end - start)))


def uniform(seed: int, layer: int, sample: Tensor, position: Tensor) -> Tensor:
    """Counter-based uniform numbers in (0, 1), fp64 [B, T]. sample: int64 [B, 1] or [1, 1]; position: int64 [B, T].

    Three rounds of a 31-bit multiply-xorshift hash (the mixing steps of MurmurHash3's finaliser, kept below 63 bits).
    """
    key = (position * 0x2C1B3C6D + sample * 0x297A2D39 + layer * 0x1B873593 + seed * 0x0E6546B6) & _MASK
    for factor in (0x45D9F3B, 0x119DE1F3, 0x27D4EB2D):
        key = ((key ^ (key >> 15)) * factor) & _MASK
    return ((key ^ (key >> 16)).double() + 0.5).div(1 << 31)
