"""Random numbers that belong to a token at its place, never to a batch: a row draws the same alone and in company
(law 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depthdial.core.decision import Site
from depthdial.core.route import Route

_MASK = (1 << 31) - 1


def drawn(seed: int, site: Site, x: Tensor, route: Route) -> Tensor:
    """A uniform number in (0, 1) for each token at a site, fp64 [B, T]. x: [B, T, d], for its shape and device.

    Keyed by (seed, layer, position), in training also by the row's key; a layer's attention and whole layer share their
    numbers, its MLP has its own. Elsewhere the token itself is in the key: other texts draw other numbers, and whoever
    runs a text, in whatever pieces and from whatever cache, draws the same. (Embeddings have no ids, and share.)
    """
    layer = site.layer + (1 << 16) * (site.unit == "mlp")
    return uniform(seed, layer, _key(route, x.device), _positions(route)).expand(x.shape[:2])


def drawn_for_layers(seed: int, layers: Sequence[int], route: Route) -> Tensor:
    """What `drawn` gives at the attention of each of some layers, fp64 [layers, B, T], in one go: executors that ask
    before each short pass have no time for one layer after the other."""
    positions = _positions(route)
    numbers = torch.tensor(layers, device=positions.device)[:, None, None]
    return uniform(seed, numbers, _key(route, positions.device), positions)


def _key(route: Route, device: torch.device) -> Tensor:
    if route.sample is not None:
        return route.sample[:, None]
    return torch.zeros(1, 1, dtype=torch.long, device=device) if route.tokens is None else route.tokens


def _positions(route: Route) -> Tensor:
    assert route.positions is not None, "a unit hands its position ids to the route"
    return route.positions


def fading(progress: float, start: float, end: float) -> float:
    """1 up to the share `start` of training, 0 from `end` on, a straight line between."""
    return min(1.0, max(0.0, (end - progress) / (end - start)))


def uniform(seed: int, layer: int | Tensor, sample: Tensor, position: Tensor) -> Tensor:
    """Counter-based uniform numbers in (0, 1), fp64 [B, T]. sample: of a row or a token, int64 [B, T], [B, 1], [1, 1];
    position: int64 [B, T]; layer: one, or int64 [L, 1, 1] for a result [L, B, T].

    Three rounds of a 31-bit multiply-xorshift hash (the mixing steps of MurmurHash3's finaliser, kept below 63 bits).
    """
    key = (position * 0x2C1B3C6D + sample * 0x297A2D39 + layer * 0x1B873593 + seed * 0x0E6546B6) & _MASK
    for factor in (0x45D9F3B, 0x119DE1F3, 0x27D4EB2D):
        key = ((key ^ (key >> 15)) * factor) & _MASK
    return ((key ^ (key >> 16)).double() + 0.5).div(1 << 31)
