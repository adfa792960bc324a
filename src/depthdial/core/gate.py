"""A layer's decision in a form that executors can fuse into one native call.

A method may describe with it what its `decide` and `bypass` say; the law that the two agree is in tests/laws. This file
is *not* how an executor evaluates it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.layers import Adapter, LinearRouter, Router


@dataclass(frozen=True)
class Gate:
    """One decision for a layer's attention and MLP together: the layer runs where logit + offset > cut.

    The logit is router(z), z the normed input of attention. Skipped: h = x (K and V are still written), u = norm(x),
    y = x + w_skip * adapter(u). Kept: h = x + attn(z), y = h + w_run * mlp(norm(h)).
    """

    router: Router | LinearRouter | None
    """None: the layer is kept where the method says so without looking (`Method.reads_input` is False)."""
    cut: float
    """log(tau / (1 - tau)): 0 for tau = 0.5."""
    weights: Literal["hard", "soft"]
    """"hard": w_run = w_skip = 1. "soft": w_run = g, w_skip = 1 - g, with g = sigmoid(logit + offset)."""
    adapter: Adapter | None
    """None: nothing is added for a skipped token."""

    def decide(self, z: Tensor, offset: Tensor | float) -> tuple[Decision, Decision]:
        """The decisions of attention and of the MLP, as the reference has them without gradients.

        z: [B, T, d]; offset: fp32, one number or [B, 1]. Raises ValueError without a router.
        """
        if self.router is None:
            raise ValueError("this gate has no router; ask the method's `decide`")
        return self.of(self.router(z), offset)

    def of(self, logit: Tensor, offset: Tensor | float) -> tuple[Decision, Decision]:
        """The same from the router's logit, [B, T]."""
        shifted = logit.float() + offset
        keep, g = shifted > self.cut, shifted.sigmoid()
        attn = Decision.hard(keep, g)
        if self.weights == "hard":
            return attn, attn
        return attn, Decision(keep, keep * g, ~keep * (1 - g), g)
