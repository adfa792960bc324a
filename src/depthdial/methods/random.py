"""Random skipping at a given rate: the baseline that shows whether a router has learned anything.

Whether a layer runs is drawn from (seed, layer, position), in training also from a key of the row, never from the
batch: a row draws the same alone and in company. Adapters train under this route like a router's do under its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision, Site
from depthdial.core.layers import Adapter
from depthdial.core.method import Dims, Method, Parts, span
from depthdial.core.route import Route

_MASK = (1 << 31) - 1


def uniform(seed: int, layer: int, sample: Tensor, position: Tensor) -> Tensor:
    """Counter-based uniform numbers in (0, 1), fp64 [B, T]. sample: int64 [B, 1] or [1, 1]; position: int64 [B, T].

    Three rounds of a 31-bit multiply-xorshift hash (the mixing steps of MurmurHash3's finaliser, kept below 63 bits).
    """
    key = (position * 0x2C1B3C6D + sample * 0x297A2D39 + layer * 0x1B873593 + seed * 0x0E6546B6) & _MASK
    for factor in (0x45D9F3B, 0x119DE1F3, 0x27D4EB2D):
        key = ((key ^ (key >> 15)) * factor) & _MASK
    return ((key ^ (key >> 16)).double() + 0.5).div(1 << 31)


@dataclass(frozen=True)
class Random(Method):
    """Each routed layer runs with probability `rate`, on its own for each layer and token."""

    units = ("attn", "mlp")
    kv = "project"

    first: int | None = None
    """First routed layer; None is the upper half."""
    last: int | None = None
    """One past the last routed layer; None is the top."""
    but: tuple[int, ...] = ()
    """Layers of that span that always run all the same (ours: a base may have one it cannot do without)."""
    rate: float = 0.75
    """Share of routed layers a token runs at offset 0."""
    adapter_ratio: int = 16
    """The adapter's width is d_ff / adapter_ratio; 0 is no adapter: a bare skip."""
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "but", tuple(self.but))  # JSON gives lists
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must lie between 0 and 1, not {self.rate}")

    def layers(self, depth: int) -> Sequence[int]:
        return span(self.first, self.last, self.but, depth)

    def parts(self, site: Site, dims: Dims) -> dict[str, nn.Module]:
        if site.unit == "attn" or not self.adapter_ratio:
            return {}
        return {"adapter": Adapter(dims.hidden, max(1, dims.intermediate // self.adapter_ratio))}

    def decide(self, parts: Parts, x: Tensor, site: Site, route: Route) -> Decision:
        if site.unit == "mlp":
            return route.decisions[site._replace(unit="attn")]
        assert route.positions is not None, "attention hands its position ids to the route"
        sample = x.new_zeros(1, 1, dtype=torch.long) if route.sample is None else route.sample[:, None]
        draw = uniform(self.seed, site.layer, sample, route.positions).expand(x.shape[:2])
        rate = torch.full(draw.shape, math.log(self.rate / (1 - self.rate)), device=x.device)
        score = route.shifted(rate).sigmoid()
        return Decision.hard(draw < score, score)

    def bypass(self, parts: Parts, x: Tensor, site: Site) -> Tensor | None:
        return parts["adapter"](x) if "adapter" in parts else None
