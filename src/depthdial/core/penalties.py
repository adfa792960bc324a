"""Shapes of auxiliary loss. Each maps what a pass decided to a loss per token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from depthdial.core.tokens import Tokens


def squared_depth(scores: Tensor) -> Tensor:
    """(sum over layers of g)^2 for each token (FlexiDepth's skip loss). scores: [steps, N] -> fp32 [N]."""
    return scores.float().sum(0).square()


def off_density(run: Tensor, target: float, tokens: Tokens, measured: Tensor | None = None) -> Tensor:
    """sum over steps of (r - target)^2, r the share of tokens that run a step (SkipLayer's loss); fp32 [N].

    run: [steps, N], 1 or 0, with the router's gradient; tokens: rectangular, for their rows and what is real of them.
    measured: r of each step over a whole optimizer step, fp32 [steps], of all passes and processes. The mean over that
    step's tokens is then the loss exactly, and so is its gradient, though each pass sees a part: the square is written
    by its tangent at `measured`. None: each row answers for its own share; no row needs to know of another.
    """
    run = run.float()
    if measured is not None:
        at = measured.to(run)[:, None]
        return ((at - target).square() + 2 * (at - target) * (run - at)).sum(0)
    real = run.new_ones(run.shape[1]) if tokens.real is None else tokens.real.to(run)
    real = tokens.rows(real)
    by_row = run.view(-1, *real.shape)
    share = (by_row * real).sum(-1) / real.sum(-1).clamp_min(1)
    return (share - target).square().sum(0)[:, None].expand(real.shape).reshape(-1)


def unforeseen(scores: Tensor, chosen: Tensor) -> Tensor:
    """Binary cross-entropy of predictions against what was chosen, summed over steps; fp32 [N].

    scores: [steps, N] in (0, 1); chosen: bool, same shape (Mixture-of-Depths' auxiliary loss).
    """
    return F.binary_cross_entropy(scores.float(), chosen.float(), reduction="none").sum(0)
