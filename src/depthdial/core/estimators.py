"""Gradients for hard decisions."""

from torch import Tensor


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, exactly, with the gradient of `soft` (Bengio et al., 2013, arXiv 1308.3432)."""
    return hard.to(soft.dtype) + (soft - soft.detach())
