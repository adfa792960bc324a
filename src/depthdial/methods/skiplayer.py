"""SkipLayer: "Learning to Skip for Language Modeling" (Zeng et al., Google; 2023), arXiv 2311.15436.

A decoder is pre-trained with a binary router at each layer (or module). One routed layer, F the whole block and
x: [B, T, d] its input:

    l = W norm(x)                                    two logits per token, "run" and "skip"; no bias
    r = 1[l_run > l_skip]                            inference: greedy
    r = Gumbel-softmax((l_run, l_skip) / T)_run      training: hard forward, soft backward (straight-through)
    y = r F(x) + (1 - r) x                           a skipped token keeps its state, but writes its K and V
    loss = CE + 0.1 sum_l (r_l - P)^2                r_l the share of tokens that ran layer l, P the target density

The share is that of each row, so that no row needs another, or of a pass on all processes where whoever trains says
it (`Tokens.density`). The dial's offset is ours: it shifts l_run - l_skip. So are two switches: `detach` (the paper
does not say whether routers teach the stream; in small models that drowns all else) and `noise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.draws import drawn
from depthdial.core.estimators import gumbel_sigmoid, straight_through
from depthdial.core.layers import LinearRouter
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
        if not self.alpha >= 0:
            raise ValueError(f"alpha must not be below 0, and {self.alpha} is")

    def program(self, depth: int) -> Program:
        return plain(depth, span(self.first, self.last, self.but, depth), self.units)

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        return {"router": LinearRouter(dims.hidden, fixed=self.fixed_input)}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        logit = tokens.shifted(parts["router"](seen.x.detach() if self.detach else seen.x))
        score = logit.sigmoid()
        if not tokens.training:
            return Decision.hard(logit > 0, score)
        soft = gumbel_sigmoid(logit, drawn(self.seed, trace.program, s, tokens), self.temperature, self.noise)
        keep = soft > 0.5
        run = straight_through(keep, soft)
        return Decision(keep, run, 1 - run, score)

    @property
    def target(self) -> float:
        return self.density

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        return lowered_router(parts)

    def loss(self, tokens: Tokens, trace: Trace) -> Tensor | None:
        terms = [
            off_density(trace.stack("run", unit), self.density, tokens, trace.density(tokens, unit))
            for unit in self.units
        ]
        return self.alpha * torch.stack(terms).sum(0)
