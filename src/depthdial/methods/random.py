"""Random skipping at a given rate: the baseline that shows whether a router has learned anything.

Whether a layer runs is drawn from (seed, layer, position, token), in training from a key of the row instead of the
token, never from the batch: a row draws the same alone and in company, and two texts share a coin only where both have
the same token at the same place. Adapters train under this route like a router's do under its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision, Site
from depthdial.core.draws import drawn, drawn_for_layers
from depthdial.core.gate import Gate
from depthdial.core.layers import Adapter
from depthdial.core.method import Dims, Method, Parts, span
from depthdial.core.route import Route


@dataclass(frozen=True)
class Random(Method):
    """Each routed layer runs with probability `rate`, on its own for each layer and token."""

    units = ("attn", "mlp")
    kv = "project"
    reads_input = False
    example: ClassVar[Mapping[str, object]] = {"first": 2, "adapter_ratio": 4, "rate": 0.6}

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
        draw = drawn(self.seed, site, x, route)
        score = self._score(draw, route)
        return Decision.hard(draw < score, score)

    def keeps(self, layers: Sequence[int], route: Route) -> Tensor:
        draw = drawn_for_layers(self.seed, layers, route)
        return draw < self._score(draw[0], route)

    def _score(self, like: Tensor, route: Route) -> Tensor:
        """The dial's share of tokens that run, fp32 [B, T]."""
        return route.shifted(
            torch.full(like.shape, math.log(self.rate / (1 - self.rate)), device=like.device)
        ).sigmoid()

    @property
    def target(self) -> float:
        return self.rate

    def bypass(self, parts: Parts, x: Tensor, site: Site) -> Tensor | None:
        return parts["adapter"](x) if "adapter" in parts else None

    def gate(self, parts: Mapping[str, Parts], layer: int) -> Gate | None:
        mlp = parts["mlp"]
        adapter = mlp["adapter"] if "adapter" in mlp else None  # noqa: SIM401 (a ModuleDict has no `get`)
        assert adapter is None or isinstance(adapter, Adapter)
        return Gate(None, 0.0, "hard", adapter)
