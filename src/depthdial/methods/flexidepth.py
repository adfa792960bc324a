"""FlexiDepth: "Adaptive Layer-skipping in Pre-trained LLMs" (Luo, Wang, Yan; COLM 2025), arXiv 2503.23798.

One adaptive layer, as the released checkpoint computes it (x: [B, T, d]):

    z = input_layernorm(x)
    g = sigmoid(router(z))                              one gate per token
    m = 1[g > tau]
    h = x + m * SelfAttn(z)                             K and V are written for every token; never scaled by g
    u = post_attention_layernorm(h)                     h == x for a skipped token
    y = h + m * g * MLP(u) + (1 - m) * (1 - g) * Adapter(u)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.draws import drawn, fading
from depthdial.core.estimators import straight_through
from depthdial.core.layers import Adapter, Router
from depthdial.core.lowered import Lowered, adapter_in, lowered_router
from depthdial.core.method import Dims, Method, Parts, Seen, span
from depthdial.core.penalties import squared_depth
from depthdial.core.program import Program, Step, plain
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class FlexiDepth(Method):
    """Per-token routers and adapters on a span of layers of a frozen model."""

    reads = frozenset({"x", "position", "key", "id"})
    budgeted: ClassVar[Mapping[str, object]] = {"weights": "hard", "gate_gradient": "sampled", "start": 0.0}
    example: ClassVar[Mapping[str, object]] = {"first": 2, "adapter_ratio": 4, "router_ratio": 4, "start": 0.0}

    first: int | None = None
    """First routed layer; None is the upper half, as in the paper."""
    last: int | None = None
    """One past the last routed layer; None routes up to the top, as in the paper."""
    but: tuple[int, ...] = ()
    """Layers of that span that always run all the same (ours: a base may have one it cannot do without)."""
    router_ratio: int = 16
    """The router's bottleneck is d / router_ratio."""
    adapter_ratio: int = 16
    """The adapter's width is d_ff / adapter_ratio."""
    tau: float = 0.5
    """A layer runs where g > tau, strictly."""
    alpha: float = 1e-3
    """Weight of the skip loss."""
    weights: Literal["soft", "hard"] = "soft"
    """"soft": g and 1 - g weigh MLP and adapter, also at inference (released form). "hard": weights are m and 1 - m."""
    gate_gradient: Literal["straight_through", "soft_scale", "sampled"] = "straight_through"
    """How the router learns: through m + g - stopgrad(g); only through the soft weights (released form); or (ours) as
    the first, with m drawn with probability g in training. The loss is flat around the full model: a kept unit shows
    no benefit, a skipped one twice its benefit, and without draws all logits end at the threshold (docs/log.md)."""
    detach: bool = False
    """Whether a router only reads its input (ours), or its gate's gradient reaches the adapters below it, too. Only
    reading gave 0.3 to 2.3 % less perplexity after 420 steps, one run each (docs/log.md)."""
    router_order: Literal["norm_tanh", "tanh_norm"] = "norm_tanh"
    """Norm before tanh (released code) or after it (the paper's formula)."""
    start: float = 2.0
    """Initial bias of every gate's logit: positive starts from "runs everything". The released form has none (0)."""
    fixed_input: bool = False
    """Whether routers are fed ones in place of their input: the control that cannot see the token (ours)."""

    def __post_init__(self):
        object.__setattr__(self, "but", tuple(self.but))  # JSON gives lists
        if self.weights not in ("soft", "hard"):
            raise ValueError(f"weights must be 'soft' or 'hard', not {self.weights!r}")
        if self.gate_gradient not in ("straight_through", "soft_scale", "sampled"):
            raise ValueError(
                f"gate_gradient must be 'straight_through', 'soft_scale' or 'sampled', not {self.gate_gradient!r}"
            )
        if self.weights == "hard" and self.gate_gradient == "soft_scale":
            raise ValueError("hard weights give the router no gradient with soft_scale; use straight_through")
        if self.router_order not in ("norm_tanh", "tanh_norm"):
            raise ValueError(f"router_order must be 'norm_tanh' or 'tanh_norm', not {self.router_order!r}")
        if not 0 < self.tau < 1:
            raise ValueError(f"tau must lie between 0 and 1, not {self.tau}")
        if min(self.router_ratio, self.adapter_ratio) < 1:
            raise ValueError("router_ratio and adapter_ratio must be at least 1")

    def program(self, depth: int) -> Program:
        return plain(depth, span(self.first, self.last, self.but, depth), ("attn", "mlp"))

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        if step.unit == "attn":
            more = (self.router_order, self.start, self.fixed_input)
            return {"router": Router(dims.hidden, self.router_ratio, dims.eps, *more)}
        return {"adapter": Adapter(dims.hidden, max(1, dims.intermediate // self.adapter_ratio))}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        if trace.program.steps[s].unit == "mlp":  # decided once a layer, before attention
            return self._mlp(trace.decisions[s - 1])
        logit = tokens.shifted(parts["router"](seen.x.detach() if self.detach else seen.x))
        g = logit.sigmoid()
        keep = g > self.tau
        if self.gate_gradient == "sampled" and tokens.training:
            # at the end adapters learn under the routes that will be used, and routers stand still
            noise = fading(tokens.progress, 0.6, 0.85)
            keep = (logit + noise * drawn(0, trace.program, s, tokens).logit().float()).sigmoid() > self.tau
            g = torch.lerp(g.detach(), g, noise)  # learn as much as is explored
        m = keep.float() if self.gate_gradient == "soft_scale" else straight_through(keep, g)
        return Decision(keep, m, 1 - m, g)

    def _mlp(self, attn: Decision) -> Decision:
        if self.weights == "hard":
            return attn
        assert attn.score is not None
        g = attn.score
        return Decision(attn.keep, attn.run * g, attn.skip * (1 - g), g)

    def bypass(self, parts: Parts, x: Tensor, s: int) -> Tensor | None:
        return parts["adapter"](x) if "adapter" in parts else None

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        if "router" in parts:
            return lowered_router(parts, math.log(self.tau / (1 - self.tau)))
        return Lowered(None, weights=self.weights, bypass=adapter_in(parts), like=s - 1)

    def loss(self, tokens: Tokens, trace: Trace) -> Tensor | None:
        return self.alpha * squared_depth(trace.stack("score", "attn"))
