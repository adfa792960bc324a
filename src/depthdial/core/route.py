"""What the last pass of a model decided, to look at: decisions, layers used, cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from depthdial.core.cost import Ledger, token_cost
from depthdial.core.decision import Decision
from depthdial.core.routed import Pass


class Route:
    """A read-only view of the last forward pass of a converted model in this thread (`model.route`)."""

    def __init__(self, last: Callable[[], Pass | None], ledger: Callable[[], Ledger]):
        self._last, self._ledger = last, ledger

    def __repr__(self) -> str:
        try:
            rows, length = self.shape
        except ValueError:
            return "Route(no pass yet)"
        layers = self.layers_used.float().mean()
        return f"Route({rows} x {length} tokens, {layers:.1f} of {len(self.last.trace.program.visits)} layers)"

    @property
    def last(self) -> Pass:
        """The pass itself, its tokens and its trace. ValueError where there is none."""
        last = self._last()
        shape = None if last is None else last.tokens.shape
        if last is None or shape is None or any(isinstance(size, torch.SymInt) for size in shape):
            raise ValueError("no forward pass of this model has run in this thread, or it was only traced: run it")
        if not math.prod(shape) or any(isinstance(d.keep, FakeTensor) for d in last.trace.decisions.values()):
            raise ValueError("the last forward pass had no tokens, or was only traced: run the model first")
        return last

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T) of the last pass."""
        shape = self.last.tokens.shape
        assert shape is not None
        return shape

    @property
    def decisions(self) -> dict[int, Decision]:
        """By step of the program, each field as [B, T]."""
        return {s: decision.shaped(*self.shape) for s, decision in sorted(self.last.trace.decisions.items())}

    def keep(self, unit: str | None = None) -> Tensor:
        """bool [visits, B, T]: which layers ran for each token; a layer counts when any of its units ran, one that is
        never skipped included. unit: "attn" or "mlp": where that unit ran. ValueError without a pass."""
        last = self.last
        return last.trace.keep(last.tokens.offset, unit).view(-1, *self.shape).cpu()

    @property
    def layers_used(self) -> Tensor:
        """int64 [B, T]: layers run for each token."""
        return self.keep().sum(0)

    def token_cost(self) -> Tensor:
        """float [B, T]: true cost of each token, relative to dense (see `core.cost`). ValueError without a pass."""
        last = self.last
        return token_cost(self._ledger(), last.tokens, last.trace).view(self.shape)

    def cost(self) -> float:
        """Mean true cost of the last pass over its real tokens; 1.0 is the untouched base. ValueError without any."""
        last = self.last
        cost = token_cost(self._ledger(), last.tokens, last.trace)
        if last.tokens.real is not None:
            cost = cost[last.tokens.real.to(cost.device)]
        if not cost.numel():
            raise ValueError("the last forward pass had no real token (its attention mask hides all): no cost to give")
        return float(cost.mean())
