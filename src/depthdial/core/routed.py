"""The dense, differentiable reference: the meaning of every method.

It runs the unit for every token and weighs the result, so it is never the fast way. The engine must equal it and must
not compute what was skipped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision, Site
from depthdial.core.method import Method
from depthdial.core.route import Route


class _Open(NamedTuple):
    """A pass between the unit's input and its output."""

    x: Tensor
    z: Tensor
    decision: Decision


class Routed:
    """Hooks on one unit of an unmodified Hugging Face layer, or on the layer, that apply a method's decision to it.

    The unit stays where it is, so every weight of the base keeps its name; the method's parts become the unit's
    submodule `parts`. `lerp` is exact at 0 and at 1, so keep-all is the base bit for bit. The decision is made and
    stored before the unit runs; of a tuple that it gives the tail is kept.
    norm: the submodule of the unit that norms its input, for a unit that does so itself (a whole layer): methods decide
    on normed inputs. outlet: the module whose output is the unit's update, where a norm follows the unit; None: the
    unit.
    """

    def __init__(
        self,
        unit: nn.Module,
        method: Method,
        site: Site,
        parts: dict[str, nn.Module],
        route: Route,
        norm: str | None = None,
        outlet: nn.Module | None = None,
    ):
        self.unit, self.method, self.site, self.route, self.norm = unit, method, site, route, norm
        unit.add_module("parts", nn.ModuleDict(parts))
        self.mix = mixed
        """To be replaced by a compiled one."""
        self._open: _Open | None = None
        self._hooks = (
            unit.register_forward_pre_hook(self._decide, with_kwargs=True),
            (unit if outlet is None else outlet).register_forward_hook(self._weigh),
        )

    @property
    def parts(self) -> nn.ModuleDict:
        parts = self.unit.get_submodule("parts")
        assert isinstance(parts, nn.ModuleDict)
        return parts

    def remove(self) -> None:
        """Leave the unit as it was, without parts."""
        for hook in self._hooks:
            hook.remove()
        del self.unit.parts

    def _decide(self, _unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, route = args[0] if args else kwargs["hidden_states"], self.route
        if kwargs.get("position_ids") is not None:
            route.positions = kwargs["position_ids"]
        self._open = None
        if route.dense:
            route.record(self.site, Decision.hard(x.new_ones(x.shape[:2], dtype=torch.bool)))
            return
        z = x if self.norm is None else self.unit.get_submodule(self.norm)(x)
        decision = route.voted(self.site, self.method.decide(self.parts, z, self.site, route))
        route.record(self.site, decision)
        self._open = _Open(x, z, decision)

    def _weigh(self, _outlet: nn.Module, _args: tuple[Any, ...], out: Any) -> Any:
        opened, self._open = self._open, None
        if opened is None:
            return None  # the untouched base
        x, z, decision = opened
        update, tail = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
        base = x if self.site.unit == "layer" else torch.zeros_like(x)  # attn and mlp: the residual is outside
        update = self.mix(base, update, decision.run)
        bypass = self.method.bypass(self.parts, z, self.site)
        update = update if bypass is None else update + decision.skip[..., None].to(x.dtype) * bypass
        return update if tail is None else (update, *tail)


def mixed(base: Tensor, update: Tensor, run: Tensor) -> Tensor:
    """(1 - run) base + run update, exact at 0 and 1. base, update: [B, T, d]; run: [B, T]. In base's dtype: autocast
    narrows updates."""
    return torch.lerp(base, update.to(base.dtype), run[..., None].to(base.dtype))
