"""Gradients for hard decisions."""

import torch
from torch import Tensor

from depthdial.core.tokens import Tokens


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


def reinforced(keep: Tensor, score: Tensor, tokens: Tokens) -> Tensor:
    """A loss whose gradient is REINFORCE's for draws with chances `score` (Williams, 1992), fp32 [N]: the logarithm of
    the chance of all that was drawn for a token, times how much worse it came out than the mean of all.

    keep: bool [steps, N]; score: fp32 [steps, N]; tokens: with their losses. ValueError where those are not there.
    """
    if tokens.loss is None:
        raise ValueError("estimator 'reinforce' needs what came of each token, which this trainer does not say")
    chance = torch.where(keep, score, 1 - score).clamp_min(1e-6)
    return (tokens.loss - tokens.loss.mean()) * chance.log().sum(0)
