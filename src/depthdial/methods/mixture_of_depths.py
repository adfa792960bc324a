"""Mixture-of-Depths (Raposo et al., Google DeepMind; 2024), arXiv 2404.02258.

Expert choice: at every other layer the router picks the k = C T tokens of a sequence that run it. f is the block's
update (attention and MLP), X the tokens picked, x_i a token's state:

    r_i = w . norm(x_i)                                     the paper leaves the norm out
    x_i <- x_i + r_i f(X)_i   where r_i is among the k highest of the sequence, else x_i

Only picked tokens are seen by the layer's attention: a skipped one leaves no key, and positions stay as they are.
Picking looks at later tokens, which decoding cannot, so a small network learns, without a gradient into the model, to
foresee from x_i alone whether the token is picked (binary cross-entropy), and decides at inference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.layers import LinearRouter, Router
from depthdial.core.method import Dims, Method, Parts, Seen
from depthdial.core.penalties import unforeseen
from depthdial.core.program import Program, Step, plain
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class MixtureOfDepths(Method):
    """A capacity per layer, filled by the router's choice over the sequence."""

    frozen = False
    example: ClassVar[Mapping[str, object]] = {"every": 1, "capacity": 0.4, "predictor_ratio": 4}

    capacity: float = 0.125
    """C, the share of a sequence's tokens that run a routed layer."""
    every: int = 2
    """Every how many layers one is routed: 2 leaves layers 0, 2, ... dense, as the paper does; 1 routes all."""
    weights: Literal["raw", "sigmoid"] = "raw"
    """What the update is multiplied with: r, as in the paper, or sigmoid(r), which keeps it positive."""
    choice: Literal["predictor", "top_k"] = "predictor"
    """Who decides at inference: the causal predictor, or top-k as in training (the paper's evaluation, not causal)."""
    predictor_ratio: int = 16
    """The predictor's bottleneck is d / predictor_ratio."""
    alpha: float = 1.0
    """Weight of the predictor's loss; it reaches nothing but the predictor."""
    fixed_input: bool = False
    """Whether router and predictor are fed ones in place of their input: the control that cannot see the token (ours).
    In training the first tokens of a sequence are picked then, as all weigh the same."""

    def __post_init__(self):
        if not 0 < self.capacity <= 1:
            raise ValueError(f"capacity must lie between 0 and 1, not {self.capacity}")
        if min(self.every, self.predictor_ratio) < 1:
            raise ValueError("every and predictor_ratio must be at least 1")
        if self.weights not in ("raw", "sigmoid"):
            raise ValueError(f"weights must be 'raw' or 'sigmoid', not {self.weights!r}")
        if self.choice not in ("predictor", "top_k"):
            raise ValueError(f"choice must be 'predictor' or 'top_k', not {self.choice!r}")

    def program(self, depth: int) -> Program:
        if self.every > depth:
            raise ValueError(f"every {self.every} layers: none of them fit a model of {depth} layers")
        return plain(depth, range(self.every - 1, depth, self.every), absent="nothing")

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        share = min(max(self.capacity, 0.01), 0.99)
        start = math.log(share / (1 - share))
        return {
            "router": LinearRouter(dims.hidden, classes=1, fixed=self.fixed_input),
            "predictor": Router(dims.hidden, self.predictor_ratio, dims.eps, start=start, fixed=self.fixed_input),
        }

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        r = parts["router"](seen.x)
        foreseen = tokens.shifted(parts["predictor"](seen.x.detach()))
        if tokens.training or self.choice == "top_k":
            keep = self._picked(r, tokens) | tokens.full
        else:
            keep = foreseen > 0
        run = torch.where(keep, self._weight(r, tokens), 0.0)
        return Decision(keep, run, (~keep).to(run.dtype), foreseen.sigmoid())

    def _picked(self, r: Tensor, tokens: Tokens) -> Tensor:
        """bool [N]: the k highest of each row's real tokens, at least one. r: fp32 [N]."""
        real = torch.ones_like(tokens.full) if tokens.real is None else tokens.real
        r, real = tokens.rows(r), tokens.rows(real)
        k = (self.capacity * real.sum(-1, keepdim=True)).long().clamp_min(1)
        order = r.masked_fill(~real, -math.inf).argsort(dim=-1, descending=True, stable=True)
        picked = torch.zeros_like(real).scatter(1, order, torch.arange(r.shape[1], device=r.device) < k) & real
        return picked.view(-1)

    def _weight(self, r: Tensor, tokens: Tokens) -> Tensor:
        """fp32 [N]: the router's weight on the update. The dial leads it to 1, where the base is untouched."""
        if self.weights == "sigmoid":
            return tokens.shifted(r).sigmoid()
        turned = tokens.shifted(torch.zeros_like(r)).tanh().clamp_min(0)
        return torch.lerp(r, torch.ones_like(r), turned)

    @property
    def target(self) -> float:
        return self.capacity

    def loss(self, tokens: Tokens, trace: Trace) -> Tensor | None:
        return self.alpha * unforeseen(trace.stack("score"), trace.stack("keep"))
