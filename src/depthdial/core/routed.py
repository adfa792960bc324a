"""The dense, differentiable reference: the meaning of every method.

It runs the unit for every token and weighs the result, so it is never the fast way. The engine must equal it and must
not compute what was skipped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision, Site
from depthdial.core.method import Method
from depthdial.core.route import Route


class Routed(nn.Module):
    """Wraps one unit of an unmodified Hugging Face layer, or the layer, and applies a method's decision to it.

    It restates no signature of the unit: keyword arguments pass through, and a tuple keeps its tail. `lerp` is exact
    at 0 and at 1, so keep-all is the base bit for bit. The decision is made and stored before the unit runs.
    norm: the submodule of the unit that norms its input, for a unit that does so itself (a whole layer): methods decide
    on normed inputs.
    """

    def __init__(
        self,
        unit: nn.Module,
        method: Method,
        site: Site,
        parts: dict[str, nn.Module],
        route: Route,
        norm: str | None = None,
    ):
        super().__init__()
        self.unit, self.method, self.site, self.route, self.norm = unit, method, site, route, norm
        self.parts = nn.ModuleDict(parts)
        self.mix = mixed
        """To be replaced by a compiled one."""

    def forward(self, *args: Tensor, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if kwargs.get("position_ids") is not None:
            self.route.positions = kwargs["position_ids"]
        if self.route.dense:
            self.route.decisions[self.site] = Decision.hard(x.new_ones(x.shape[:2], dtype=torch.bool))
            return self.unit(*args, **kwargs)
        z = x if self.norm is None else self.unit.get_submodule(self.norm)(x)
        decision = self.route.voted(self.site, self.method.decide(self.parts, z, self.site, self.route))
        self.route.decisions[self.site] = decision
        out = self.unit(*args, **kwargs)
        update, tail = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
        update = self._weigh(x, z, update, decision)
        return update if tail is None else (update, *tail)

    def _weigh(self, x: Tensor, z: Tensor, update: Tensor, decision: Decision) -> Tensor:
        base = x if self.site.unit == "layer" else torch.zeros_like(x)  # attn and mlp: the residual is outside
        update = self.mix(base, update, decision.run)
        bypass = self.method.bypass(self.parts, z, self.site)
        return update if bypass is None else update + decision.skip[..., None].to(x.dtype) * bypass


def mixed(base: Tensor, update: Tensor, run: Tensor) -> Tensor:
    """(1 - run) base + run update, exact at 0 and 1. base, update: [B, T, d]; run: [B, T]. In base's dtype: autocast
    narrows updates."""
    return torch.lerp(base, update.to(base.dtype), run[..., None].to(base.dtype))
