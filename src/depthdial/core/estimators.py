"""Gradients for hard decisions."""

from torch import Tensor


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, exactly, with the gradient of `soft` (Bengio et al., 2013, arXiv 1308.3432)."""
    value = hard.to(soft.dtype)
    return value + (soft - soft.detach()) if soft.requires_grad else value


def gumbel_sigmoid(logit: Tensor, draw: Tensor, temperature: float, noise: float = 1.0) -> Tensor:
    """The first component of a two-way Gumbel-softmax sample (Jang et al., 2017, arXiv 1611.01144), fp32.

    logit: fp32, the first class's logit less the second's; draw: uniform in (0, 1), same shape. The difference of two
    Gumbel variables is one logistic variable, so two classes need one draw: the sample exceeds 1/2 with probability
    sigmoid(logit) at any temperature. noise: 1 draws in full; at 0 nothing is left to chance.
    """
    return ((logit + noise * draw.logit().to(logit.dtype)) / temperature).sigmoid()
