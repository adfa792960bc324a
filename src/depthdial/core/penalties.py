"""Shapes of auxiliary loss. Each maps a route's scores to a loss per token."""

from torch import Tensor


def squared_depth(scores: Tensor) -> Tensor:
    """(sum over layers of g)^2 for each token (FlexiDepth's skip loss). scores: [sites, B, T] -> fp32 [B, T]."""
    return scores.float().sum(0).square()
