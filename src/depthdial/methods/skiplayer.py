"""SkipLayer: "Learning to Skip for Language Modeling" (Zeng et al., Google; 2023), arXiv 2311.15436.

A decoder is pre-trained with a binary router at each layer (or module). One routed layer, F the whole block and
x: [B, T, d] its input:

    l = W norm(x)                                    two logits per token, "run" and "skip"; no bias
    r = 1[l_run > l_skip]                            inference: greedy
    r = Gumbel-softmax((l_run, l_skip) / T)_run      training: hard forward, soft backward (straight-through)
    y = r F(x) + (1 - r) x                           a skipped token keeps its state, but writes its K and V
    loss = CE + 0.1 sum_l (r_l - P)^2                r_l the share of tokens that ran layer l, P the target density

The share is that of each row, so that no row needs another, or of a pass on all processes where whoever trains says
it (`Tokens.density`). The dial's offset is ours: it shifts l_run - l_skip. So are other estimators, routers and shares,
all off by default: what they are worth is measured where the need of depth is known (`depthdial testbed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.draws import drawn, fading
from depthdial.core.estimators import gumbel_sigmoid, reinforced, straight_through
from depthdial.core.layers import LinearRouter, Router
from depthdial.core.lowered import Lowered, lowered_router
from depthdial.core.method import Dims, Method, Parts, Seen, span
from depthdial.core.penalties import off_density
from depthdial.core.program import Program, Step, plain
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class SkipLayer(Method):
    """A hard router per layer, or per module, learned from the first step with the weights around it."""

    reads = frozenset({"x", "position", "key", "id"})
    frozen = False

    density: float = 0.5
    """P, the share of tokens that run each routed unit; 1 asks for a dense model (the paper: 0.5, 0.25, 0.125)."""
    units: tuple[str, ...] = ("layer",)
    """What a router switches: a whole layer, or ("attn", "mlp"), each half by a router of its own."""
    first: int | None = 0
    """First routed layer; None is the upper half."""
    last: int | None = None
    """One past the last routed layer; None routes up to the top, as in the paper."""
    but: tuple[int, ...] = ()
    """Layers of that span that always run all the same (ours)."""
    temperature: float = 1.0
    """T of the Gumbel-softmax."""
    alpha: float = 0.1
    """Weight of the density loss."""
    estimator: Literal["gumbel", "sampled", "reinforce"] = "gumbel"
    """How routers learn: by the Gumbel-softmax (paper); or (ours) by draws with chance sigmoid(l_run - l_skip), with
    that chance's gradient straight through ("sampled", as FlexiDepth learns here), or by what came of each token beside
    the mean of all ("reinforce", Williams, 1992). Both of ours draw less towards the end."""
    over: Literal["layer", "all"] = "layer"
    """Of what r is the share: of each layer (the paper), or (ours) of all together, so that some may run more."""
    router_ratio: int = 0
    """0 is the paper's linear router; otherwise (ours) FlexiDepth's, with a bottleneck of d / router_ratio."""
    start: float = 0.0
    """Initial bias of that one's logits (ours): positive starts from "runs everything"."""
    noise: float = 1.0
    """How much of the Gumbel noise is added; 0 is a plain straight-through estimator (ours; docs/log.md)."""
    detach: bool = False
    """Whether the router only reads its input (ours). Otherwise the straight-through gradient of every decision reaches
    the residual stream, which cost much in small models (docs/log.md). But without a bias, a router that only reads
    nears its density only by what tokens have in common: little, in a fresh model."""
    seed: int = 0
    """Of the Gumbel noise."""
    fixed_input: bool = False
    """Whether routers are fed ones in place of their input: the control that cannot see the token (ours)."""

    def __post_init__(self):
        object.__setattr__(self, "but", tuple(self.but))  # JSON gives lists
        object.__setattr__(self, "units", (self.units,) if isinstance(self.units, str) else tuple(self.units))
        if self.units not in (("layer",), ("attn", "mlp"), ("attn",), ("mlp",)):
            raise ValueError(f"units must be layer, or attn and mlp, or one of these two; not {', '.join(self.units)}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie between 0 and 1, not {self.density}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise is a share of Gumbel noise, 0 to 1, not {self.noise}")
        if self.estimator not in ("gumbel", "sampled", "reinforce"):
            raise ValueError(f"estimator must be 'gumbel', 'sampled' or 'reinforce', not {self.estimator!r}")
        if self.over not in ("layer", "all"):
            raise ValueError(f"over must be 'layer' or 'all', not {self.over!r}")
        if self.router_ratio < 0 or (self.start and not self.router_ratio):
            raise ValueError(
                "router_ratio must be at least 0, and start is of a router with a bias: give a router_ratio"
            )
        if not self.alpha >= 0:
            raise ValueError(f"alpha must not be below 0, and {self.alpha} is")

    def program(self, depth: int) -> Program:
        return plain(depth, span(self.first, self.last, self.but, depth), self.units)

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        if self.router_ratio:
            return {
                "router": Router(dims.hidden, self.router_ratio, dims.eps, "norm_tanh", self.start, self.fixed_input)
            }
        return {"router": LinearRouter(dims.hidden, fixed=self.fixed_input)}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        logit = tokens.shifted(parts["router"](seen.x.detach() if self.detach else seen.x))
        score = logit.sigmoid()
        if not tokens.training:
            return Decision.hard(logit > 0, score)
        draw = drawn(self.seed, trace.program, s, tokens)
        if self.estimator == "gumbel":
            soft = gumbel_sigmoid(logit, draw, self.temperature, self.noise)
            keep = soft > 0.5
        else:
            noise = self.noise * fading(tokens.progress, 0.6, 0.85)
            keep, soft = gumbel_sigmoid(logit, draw, 1.0, noise) > 0.5, torch.lerp(score.detach(), score, noise)
        run = keep.float() if self.estimator == "reinforce" else straight_through(keep, soft)
        return Decision(keep, run, 1 - run, score)

    @property
    def target(self) -> float:
        return self.density

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        return lowered_router(parts)

    def loss(self, tokens: Tokens, trace: Trace) -> Tensor | None:
        terms = []
        for unit in self.units:
            run, measured = trace.stack("run", unit), trace.density(tokens, unit)
            if self.estimator == "reinforce":  # a share of chances: decisions have no gradient
                run = trace.stack("score", unit)
            if self.over == "all":
                run, measured = run.mean(0, keepdim=True), None if measured is None else measured.mean(0, keepdim=True)
            terms.append(off_density(run, self.density, tokens, measured))
        loss = self.alpha * torch.stack(terms).sum(0)
        if self.estimator == "reinforce":
            loss = loss + reinforced(trace.stack("keep"), trace.stack("score"), tokens)
        return loss
