"""All decisions of one forward pass. Loss, layer map, FLOPs and speed-up are functions of a route."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from depthdial.core.cost import Ledger, token_cost
from depthdial.core.decision import Decision, Site


@dataclass
class Route:
    """Every decision of the last forward pass, and what a decision may need to know.

    One route belongs to one converted model (`model.route`). Decisions are stored by site, so recomputation
    (gradient checkpointing) cannot record one twice.
    """

    ledger: Ledger
    offset: float | Tensor = 0.0
    """The dial: added to every gate's logit; one number, or one per row, float [B]. `inf` is the untouched base."""
    training: bool = False
    progress: float = 0.0
    """How far training is, 0 to 1: a method may leave less to chance towards its end."""
    decisions: dict[Site, Decision] = field(default_factory=dict)
    positions: Tensor | None = None
    """int64 [B or 1, T]: place of each token in its document."""
    tokens: Tensor | None = None
    """int64 [B, T]: the ids that the pass reads; None where it was given embeddings instead."""
    mask: Tensor | None = None
    """bool [B, T]: True at real tokens; None when nothing is padded."""
    sample: Tensor | None = None
    """int64 [B]: a key per row for random choices; only set in training, so that a row draws the same in any batch."""
    density: dict[Site, Tensor] | None = None
    """fp32 scalars: the share of tokens that ran each site over a pass on all processes, from whoever trains on
    several; None where a loss is to look at this pass alone."""
    vote: float | None = None
    """Where set, the rows of a batch decide together (`voted`): a unit runs at a place for all of them or for none,
    by whether their mean score is above this."""
    shape: tuple[int, int] = (0, 0)
    """(B, T) of the last forward pass."""
    device: torch.device | None = None
    """Of its tokens."""

    @property
    def dense(self) -> bool:
        """True when no decision is to be made at all: the whole batch runs the untouched base."""
        return not isinstance(self.offset, Tensor) and self.offset == math.inf

    def begin(
        self, shape: tuple[int, int], mask: Tensor | None, device: torch.device | None = None,
        tokens: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Forget the last pass; called once at the start of each forward of the model."""
        self.decisions.clear()
        self.shape, self.mask, self.device, self.tokens = shape, mask, device, tokens
        self.positions = None

    def shifted(self, logit: Tensor) -> Tensor:
        """The gate's logit [B, T] with the dial's offset added (README, "What the budget means"), in fp32."""
        offset = self.offset
        return logit.float() + (offset.to(logit.device)[:, None] if isinstance(offset, Tensor) else offset)

    def voted(self, site: Site, decision: Decision) -> Decision:
        """What the rows decide together (grain "step"), where `vote` is set; else the decision as it is.

        Rows on the untouched base neither vote nor follow; padding does not vote. A decision that only passes on
        the one of the layer's attention stays. ValueError for a decision without a score.
        """
        attn = self.decisions.get(site._replace(unit="attn"))
        if self.vote is None or (site.unit == "mlp" and attn is not None and decision.keep is attn.keep):
            return decision
        if decision.score is None:
            raise ValueError("rows vote by their routers' scores, and this method gives none; decide per token")
        score = decision.score
        voters = torch.ones_like(decision.keep) if self.mask is None else self.mask.to(score.device)
        if isinstance(self.offset, Tensor):
            voters = voters & (self.offset.to(score.device) != math.inf)[:, None]
        mean = (score * voters).sum(0) / voters.sum(0).clamp(min=1)
        return Decision.hard(torch.where(voters, mean > self.vote, decision.keep), score)

    def stack(self, name: str, unit: str) -> Tensor:
        """One field of all decisions at one kind of unit, in the order of the layers: [sites, B, T]."""
        found = [getattr(d, name) for site, d in sorted(self.decisions.items()) if site.unit == unit]
        if not found:
            raise ValueError(f"no decision at any {unit!r} in this route; run the model forward first")
        return torch.stack(found)

    def measured(self, unit: str) -> Tensor | None:
        """`density` in the order of `stack`, fp32 [sites]; None where nobody has set it."""
        if self.density is None:
            return None
        density = self.density
        return torch.stack([density[site] for site in sorted(self.decisions) if site.unit == unit])

    def keep(self) -> Tensor:
        """bool [L, B, T]: which layers ran for each token; a layer counts when any of its units ran."""
        ran = torch.ones(len(self.ledger.layers), *self.shape, dtype=torch.bool)
        routed = {site.layer for site in self.decisions}
        for layer in routed:
            units = [d.keep for site, d in self.decisions.items() if site.layer == layer]
            ran[layer] = torch.stack(units).any(0).cpu()
        return ran

    @property
    def layers_used(self) -> Tensor:
        """int64 [B, T]: layers run for each token (always-on layers + sum of the hard decisions)."""
        return self.keep().sum(0)

    def token_cost(self) -> Tensor:
        """float [B, T]: true cost of each token, relative to dense (see `core.cost`)."""
        return token_cost(self.ledger, self.decisions, self.offset, self.shape, self.device)

    def cost(self) -> float:
        """Mean true cost of the last forward pass over its real tokens; 1.0 is the untouched base."""
        cost = self.token_cost()
        if self.mask is not None:
            cost = cost[self.mask.to(cost.device)]
        return float(cost.mean())
