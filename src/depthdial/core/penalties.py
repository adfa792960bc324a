"""Shapes of auxiliary loss. Each maps what a route holds to a loss per token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def squared_depth(scores: Tensor) -> Tensor:
    """(sum over layers of g)^2 for each token (FlexiDepth's skip loss). scores: [sites, B, T] -> fp32 [B, T]."""
    return scores.float().sum(0).square()


def off_density(run: Tensor, target: float, mask: Tensor | None = None, measured: Tensor | None = None) -> Tensor:
    """sum over sites of (r - target)^2, r the share of tokens that run a site (SkipLayer's loss); fp32 [B, T].

    run: [sites, B, T], 1 or 0, with the router's gradient; mask: bool [B, T], real tokens (None: all).
    measured: r of each site over a whole optimizer step, fp32 [sites], of all passes and processes. The mean over that
    step's tokens is then the loss exactly, and so is its gradient, though each pass sees a part: the square is written
    by its tangent at `measured`. None: each row answers for its own share; no row needs to know of another.
    """
    run = run.float()
    if measured is not None:
        at = measured.to(run)[:, None, None]
        return ((at - target).square() + 2 * (at - target) * (run - at)).sum(0)
    real = run.new_ones(run.shape[1:]) if mask is None else mask.to(run)
    share = (run * real).sum(-1) / real.sum(-1).clamp_min(1)
    return (share - target).square().sum(0)[:, None].expand(run.shape[1:])


def unforeseen(scores: Tensor, chosen: Tensor) -> Tensor:
    """Binary cross-entropy of predictions against what was chosen, summed over sites; fp32 [B, T].

    scores: [sites, B, T] in (0, 1); chosen: bool, same shape (Mixture-of-Depths' auxiliary loss).
    """
    return F.binary_cross_entropy(scores.float(), chosen.float(), reduction="none").sum(0)
