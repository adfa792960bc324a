"""The base model itself: nothing is routed. The first baseline every paper must stand beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depthdial.core.decision import Decision, Site
from depthdial.core.method import Method, Parts
from depthdial.core.route import Route


@dataclass(frozen=True)
class Dense(Method):
    """Every layer runs for every token."""

    grain = "static"
    reads_input = False

    def layers(self, depth: int) -> Sequence[int]:
        return ()

    def decide(self, parts: Parts, x: Tensor, site: Site, route: Route) -> Decision:
        return Decision.hard(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))

    @property
    def target(self) -> float:
        return 1.0
