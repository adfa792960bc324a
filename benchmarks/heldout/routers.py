"""Router health: do routers decide token by token, or has training left a static skip in disguise?

A router that nearly always says the same is, in effect, a fixed choice of layers, and counts as a failure of training
(a *static* method is "static in effect" throughout; a random one is not, but its scores have no spread).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depthdial.models.calibration import Batch
from depthdial.models.converted import Converted
from heldout.text import of_pass

STATIC_BELOW = 0.01
"""A layer that runs for less than this share of tokens, or skips for less, is static in effect."""


@dataclass(frozen=True)
class LayerHealth:
    """One routed layer over all scored passes."""

    layer: int
    run_rate: float
    by_group: dict[str, float]
    """Run rate by kind of text."""
    score_mean: float
    """Mean of the router's soft opinion, 0 to 1; NaN for a method without one."""
    score_std: float
    """Its standard deviation over tokens."""
    minority: float
    """Share of tokens for which the layer decides against its own majority; 0 is a static layer, 0.5 the most."""
    bits: float
    """Entropy of the decision: as its router is a function of the token, what the decision tells of the token."""

    @property
    def static(self) -> bool:
        return self.minority < STATIC_BELOW


@dataclass(frozen=True)
class RouterHealth:
    """All routed layers, and the numbers by which to judge them together."""

    layers: tuple[LayerHealth, ...]
    used_mean: float
    """Mean layers used per token, always-on ones included."""
    used_std: float
    used_low: float
    """5th percentile over tokens."""
    used_high: float
    """95th."""
    alone_std: float
    """The standard deviation that layers deciding independently of each other would give: more than this means that
    some tokens are dear, others cheap, as a whole."""

    @property
    def static_layers(self) -> list[int]:
        return [layer.layer for layer in self.layers if layer.static]

    @property
    def minority(self) -> float:
        """Mean share of decisions that no fixed choice of layers would have made."""
        return sum(layer.minority for layer in self.layers) / max(1, len(self.layers))

    @property
    def skips_by_token(self) -> float:
        """Share of all skips that are made by layers which are not static in effect."""
        skips = sum(1 - layer.run_rate for layer in self.layers)
        return sum(1 - layer.run_rate for layer in self.layers if not layer.static) / skips if skips else 0.0

    @property
    def bits(self) -> float:
        """Sum of the layers' entropies: an upper bound of what all decisions tell of a token."""
        return sum(layer.bits for layer in self.layers)

    @property
    def static(self) -> bool:
        """Static in effect altogether: every routed layer is."""
        return all(layer.static for layer in self.layers)


class RouteRecord:
    """Collects decisions batch by batch: pass `record` as `watch` to `HeldoutText.score`."""

    def __init__(self, converted: Converted, batches: Sequence[Batch]):
        self.converted, self.batches = converted, batches
        self._keep: dict[int, list[Tensor]] = {}
        self._score: dict[int, list[Tensor]] = {}

    def record(self, index: int) -> None:
        """Note the decisions of this thread's last pass, which was over batch `index`: those of attention where the MLP
        has some, too."""
        decisions, visit_of = self.converted.route.decisions, self.converted.program.visit_of
        for visit, decision in {visit_of[s]: decisions[s] for s in reversed(decisions)}.items():
            self._keep.setdefault(visit, []).append(of_pass(self.batches[index], decision.keep))
            score = torch.full(decision.keep.shape, math.nan) if decision.score is None else decision.score.float()
            self._score.setdefault(visit, []).append(of_pass(self.batches[index], score))

    def health(self, used: Tensor, groups: Mapping[str, Tensor]) -> RouterHealth:
        """used: layers used by each scored pass, [N]; groups: bool [N] by name. ValueError if nothing is routed."""
        if not self._keep:
            raise ValueError("no router to examine: this model routes no layer")
        layers = tuple(self._layer(layer, groups) for layer in sorted(self._keep))
        used = used.double()
        low, high = (float(used.quantile(q)) for q in (0.05, 0.95))
        alone = math.sqrt(sum(layer.run_rate * (1 - layer.run_rate) for layer in layers))
        return RouterHealth(layers, float(used.mean()), float(used.std()), low, high, alone)

    def _layer(self, layer: int, groups: Mapping[str, Tensor]) -> LayerHealth:
        keep, score = torch.cat(self._keep[layer]).double(), torch.cat(self._score[layer]).double()
        rate = float(keep.mean())
        by_group = {name: float(keep[where].mean()) for name, where in groups.items()}
        bits = -sum(p * math.log2(p) for p in (rate, 1 - rate) if p > 0)
        return LayerHealth(layer, rate, by_group, float(score.mean()), float(score.std()), min(rate, 1 - rate), bits)
