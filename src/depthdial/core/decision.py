"""The one word that methods and executors share: what a site does with each token.

This file is *not* about how a decision is made (methods) or carried out (`routed`, the engine).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Site(NamedTuple):
    """A residual unit that may be skipped: one layer's "attn", its "mlp", or the whole "layer"."""

    layer: int
    unit: str


@dataclass(frozen=True)
class Decision:
    """What one site does with each token. Law: `run` is 0 where skipped, `skip` is 0 where kept.

    Every paper's forward at a site is `base + run * (F(x) - base) + skip * bypass(x)`.
    """

    keep: Tensor
    """bool [B, T]: does the unit run for this token?"""
    run: Tensor
    """float [B, T]: weight on the unit's update; carries the router's gradient."""
    skip: Tensor
    """float [B, T]: weight on the bypass."""
    score: Tensor | None = None
    """float [B, T]: the router's soft opinion in (0, 1), for losses and maps."""

    @classmethod
    def hard(cls, keep: Tensor, score: Tensor | None = None) -> Decision:
        """Weights 0 and 1 exactly: the form of every decision that no router made."""
        return cls(keep, keep.float(), (~keep).float(), score)
