"""What a route costs: multiply-accumulates of linear weights, attention over the context, KV bytes.

"Cost" and "budget" mean one thing everywhere (README, "What the budget means"): executed over dense
multiply-accumulates of linear weights per token, with the LM head, K/V projections, folded router and adapter counted.
At batch 1 this is the share of weight bytes read, too. Attention over the context and
KV bytes are reported beside it, never mixed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from depthdial.core.decision import Decision, Site


@dataclass(frozen=True)
class LayerWork:
    """Multiply-accumulates of one layer for one token, and the sizes its attention over the context depends on."""

    kv: int
    """K and V projections."""
    attn: int
    """Q and output projections."""
    mlp: int
    attend: int
    """Multiply-accumulates per attended key (scores and values): 2 * query heads * head size."""
    kv_width: int
    """Numbers one token leaves in this layer's cache: 2 * key heads * head size."""
    window: int | None = None
    """Sliding window, tokens; None attends to the whole context."""

    @property
    def total(self) -> int:
        return self.kv + self.attn + self.mlp


@dataclass(frozen=True)
class Ledger:
    """The price list of a converted model, in multiply-accumulates per token."""

    layers: tuple[LayerWork, ...]
    head: int
    projects_kv: bool = True
    """Does a skipped token still pay for its K and V?"""
    always: Mapping[Site, int] = field(default_factory=dict)
    """Work of the parts that run for every token at a site (the folded router)."""
    skipped: Mapping[Site, int] = field(default_factory=dict)
    """Work of the parts that run for skipped tokens only (the adapter)."""
    skips: bool = True
    """False: units are weighed but always run, so that nothing is ever saved."""

    @property
    def dense(self) -> int:
        """Multiply-accumulates per token of the untouched base."""
        return self.head + sum(layer.total for layer in self.layers)

    def kept(self, site: Site) -> int:
        """Work at a site for a token that runs it."""
        layer = self.layers[site.layer]
        return {"attn": layer.kv + layer.attn, "mlp": layer.mlp, "layer": layer.total}[site.unit]

    def passed(self, site: Site) -> int:
        """Work at a site for a token that skips it."""
        kv = self.layers[site.layer].kv if self.projects_kv and site.unit != "mlp" else 0
        return kv + self.skipped.get(site, 0)

    def saved(self, site: Site) -> int:
        """What one skip saves at a site: negative when the bypass costs more than the unit."""
        return self.kept(site) - self.passed(site)

    @property
    def floor(self) -> float:
        """Cost of a token that skips every site that saves something."""
        sites = (set(self.always) | set(self.skipped)) if self.skips else ()
        return (self.dense + sum(self.always.values()) - sum(max(0, self.saved(s)) for s in sites)) / self.dense

    def expected(self, density: float) -> float:
        """Multiply-accumulates per token where each routed site runs for a share `density` of the tokens."""
        sites = set(self.always) | set(self.skipped)
        return self.dense + sum(self.always.values()) - (1 - density) * sum(self.saved(s) for s in sites)


def token_cost(
    ledger: Ledger, decisions: Mapping[Site, Decision], offset: float | Tensor, shape: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:  # fmt: skip
    """True cost of each token relative to dense, float [B, T]. Tokens at offset `inf` run the base: exactly 1.

    offset: one number, one per row, float [B] or [B, 1], or one per token, float [B, T].
    device: of the result where no decision was made, by default that of `offset`; else it is theirs.
    """
    return exact_cost(ledger, decisions, offset, shape, device).float()


def exact_cost(
    ledger: Ledger, decisions: Mapping[Site, Decision], offset: float | Tensor, shape: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:  # fmt: skip
    """`token_cost` in float64, as a held budget counts it (`core.hold`)."""
    if decisions:
        device = next(iter(decisions.values())).keep.device
    elif device is None and isinstance(offset, Tensor):
        device = offset.device
    work = torch.full(shape, float(ledger.dense), device=device, dtype=torch.float64)
    for site, decision in decisions.items():
        work += ledger.always.get(site, 0)
        work -= (~decision.keep) * float(ledger.saved(site))
    full = torch.as_tensor(offset, device=device) == math.inf
    return torch.where(full[:, None] if full.ndim == 1 else full, 1.0, work / ledger.dense)


def attention_macs(ledger: Ledger, keep: Tensor, positions: Tensor) -> Tensor:
    """Multiply-accumulates of attention over the context, int64 [B, T]; an upper bound where skipped tokens leave no
    key (kv "evict").

    keep: bool [L, B, T], as `Route.keep("attn")`; positions: int64 [B, T], 0 for the first token of its document.
    """
    return sum(
        (keep[i] * _context(layer, positions) * layer.attend for i, layer in enumerate(ledger.layers)),
        torch.zeros_like(positions),
    )


def kv_bytes_read(ledger: Ledger, keep: Tensor, positions: Tensor, itemsize: int) -> Tensor:
    """KV-cache bytes a lone token reads when decoded, int64 [B, T]; `itemsize` is bytes per number of the cache. An
    upper bound for kv "evict"."""
    return sum(
        (keep[i] * _context(layer, positions) * layer.kv_width * itemsize for i, layer in enumerate(ledger.layers)),
        torch.zeros_like(positions),
    )


def _context(layer: LayerWork, positions: Tensor) -> Tensor:
    seen = positions + 1
    return seen if layer.window is None else seen.clamp(max=layer.window)
