"""All decisions of one forward pass. Loss, layer map, FLOPs and speed-up are functions of a route."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from depthdial.core.cost import Ledger, token_cost
from depthdial.core.decision import Decision, Site


@dataclass
class Route:
    """Every decision of the last forward pass, and what a decision may need to know.

    One route belongs to one converted model (`model.route`), and each pass overwrites it: threads that share a model
    share its route, too, and must take turns. A copy of the model, pickled or deep, has a route of its own. Decisions
    are stored by site, so recomputation (gradient checkpointing) cannot record one twice.
    """

    ledger: Ledger
    offset: float | Tensor = 0.0
    """The dial: added to every gate's logit; one number, one per row, float [B], or one per token, float [B, T]. `inf`
    is the untouched base. Where a batch holds each row several times, side by side, as `generate` with beams makes it,
    each time has its offset."""
    read: Tensor | None = None
    """bool [B, T]: which tokens of the coming passes are read, as a prompt is, and not written (or scored as if they
    had been); None: none of them. `generate` knows by itself."""
    read_offset: float | None = None
    """The dial of tokens that are read; None: theirs is `offset`, too (the form of the papers)."""
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
    began: tuple[float | Tensor, Tensor | None, float | None] = (0.0, None, None)
    """`offset`, `read` and `read_offset` as they were when it began."""
    learns: bool = False
    """Did the last forward pass begin with gradients?"""
    blind: bool = False
    """Were its decisions made without them all the same?"""

    @property
    def dense(self) -> bool:
        """True when no decision is to be made at all: the whole batch runs the untouched base."""
        reads_less = self.read is not None and self.read_offset not in (None, math.inf)
        return not isinstance(self.offset, Tensor) and self.offset == math.inf and not reads_less

    def begin(
        self, shape: tuple[int, int], mask: Tensor | None, device: torch.device | None = None,
        tokens: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Forget the last pass; called once at the start of each forward of the model."""
        self.decisions.clear()
        self.shape, self.mask, self.device, self.tokens = shape, mask, device, tokens
        self.positions = None
        self.began = self.offset, self.read, self.read_offset
        self.learns, self.blind = torch.is_grad_enabled(), False

    def record(self, site: Site, decision: Decision) -> None:
        """Keep what was decided at a site. Warns where a reentrant checkpoint hides decisions from a loss on them."""
        self.decisions[site] = decision
        if self.learns and not torch.is_grad_enabled() and not self.blind:
            self.blind = True
            warnings.warn(
                "gradient checkpointing with use_reentrant=True: a loss on the route gives routers no gradient; pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}",
                stacklevel=2,
            )

    @property
    def dial(self) -> float | Tensor:
        """The offsets of the last pass: a number, or float [B, 1] or [B, T]. ValueError where they do not fit it."""
        return _offsets(*self.began, *self.shape)

    def shifted(self, logit: Tensor) -> Tensor:
        """The gate's logit [B, T] with the dial's offset added (README, "What the budget means"), in fp32. ValueError
        where `offset` or `read` is for other tokens."""
        offset = _offsets(self.offset, self.read, self.read_offset, *logit.shape)
        return logit.float() + (offset.to(logit.device) if isinstance(offset, Tensor) else offset)

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
        offset = _offsets(self.offset, self.read, self.read_offset, *score.shape)
        if isinstance(offset, Tensor):
            voters = voters & (offset.to(score.device) != math.inf)
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

    def keep(self, unit: str | None = None) -> Tensor:
        """bool [L, B, T]: which layers ran for each token; a layer counts when any of its units ran, one that is never
        skipped included. unit: "attn" or "mlp": where that unit ran.

        ValueError where no forward pass has left its decisions.
        """
        self._ran()
        ran = torch.ones(len(self.ledger.layers), *self.shape, dtype=torch.bool)
        for layer in {site.layer for site in self.decisions}:
            ran[layer] = layer_keep(self.decisions, layer, unit).cpu()
        return ran

    @property
    def layers_used(self) -> Tensor:
        """int64 [B, T]: layers run for each token (always-on layers + sum of the hard decisions)."""
        return self.keep().sum(0)

    def token_cost(self) -> Tensor:
        """float [B, T]: true cost of each token, relative to dense (see `core.cost`). ValueError as `keep`."""
        self._ran()
        return token_cost(self.ledger, self.decisions, self.dial, self.shape, self.device)

    def cost(self) -> float:
        """Mean true cost of the last forward pass over its real tokens; 1.0 is the untouched base.

        ValueError where there are none, and as `keep`.
        """
        cost = self.token_cost()
        if self.mask is not None:
            cost = cost[self.mask.to(cost.device)]
        if not cost.numel():
            raise ValueError("the last forward pass had no real token (its attention mask hides all): no cost to give")
        return float(cost.mean())

    def _ran(self) -> None:
        traced = any(isinstance(size, torch.SymInt) for size in self.shape) or any(
            isinstance(made.keep, FakeTensor) for made in self.decisions.values()
        )
        if traced or not math.prod(self.shape):
            raise ValueError("this route holds no forward pass (or one that was only traced); run the model first")

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: decisions without their graphs, which belong to the original's pass."""
        return {**vars(self), "decisions": {site: _detached(made) for site, made in self.decisions.items()}}


def _offsets(
    offset: float | Tensor, read: Tensor | None, read_offset: float | None, rows: int, length: int
) -> float | Tensor:  # fmt: skip
    """The dial of a pass of rows x length tokens: a number, or float [rows, 1] or [rows, length].

    ValueError where `offset` has another number of rows and not each of them the same number of times, and where it or
    `read` has another number of tokens.
    """
    if isinstance(offset, Tensor) and offset.ndim:
        per_token = offset.ndim == 2 and offset.shape[1] == length
        if not (offset.ndim == 1 or per_token) or not len(offset) or rows % len(offset):
            raise ValueError(
                f"route.offset has shape {list(offset.shape)}, the batch {rows} rows of {length} tokens; give one "
                "number, one per row, or one per token"
            )
        offset = offset.repeat_interleave(rows // len(offset), 0)
        offset = offset if per_token else offset[:, None]
    if read is None or read_offset is None:
        return offset
    if read.shape != (rows, length):
        raise ValueError(
            f"route.read has shape {list(read.shape)}, the batch {rows} rows of {length} tokens; say of each token "
            "whether it is read, or set it to None"
        )
    return torch.where(read, read_offset, torch.as_tensor(offset, dtype=torch.float32, device=read.device))


def layer_keep(decisions: Mapping[Site, Decision], layer: int, unit: str | None = None) -> Tensor:
    """bool [B, T]: did the layer run, or one of its units? The layer must have decisions. One of its two units that has
    none always runs."""
    made = {site.unit: decision.keep for site, decision in decisions.items() if site.layer == layer}
    if "layer" in made:
        return made["layer"]
    always = torch.ones_like(next(iter(made.values())))
    attn, mlp = made.get("attn", always), made.get("mlp", always)
    return attn | mlp if unit is None else {"attn": attn, "mlp": mlp}[unit]


def _detached(decision: Decision) -> Decision:
    fields = {name: value if value is None else value.detach() for name, value in vars(decision).items()}
    return dataclasses.replace(decision, **fields)
