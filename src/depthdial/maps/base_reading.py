"""What the base expects at each position: entropy, the probability of the token that came, and the likeliest tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from depthdial.models.head import Shaping

CHUNK = 64
"""Tokens whose logits are held at once: for a vocabulary of 50,000 they stay in a processor's cache."""


class Expectation(NamedTuple):
    """Of N positions, on the CPU."""

    entropy: Tensor
    """fp32 [N], nats."""
    surprisal: Tensor
    """fp32 [N], nats: -log p of the token that came next."""
    ids: Tensor
    """int64 [N, K]: the likeliest next tokens."""
    probabilities: Tensor
    """fp32 [N, K]"""


class BaseReading:
    """Reads the LM head of a model."""

    def __init__(self, head: nn.Module, shape: Shaping, most: int = 0):
        if most < 0:
            raise ValueError(f"the number of alternatives must be 0 or more, not {most}")
        self.head, self.shape, self.most = head, shape, most

    @torch.no_grad()
    def __call__(self, hidden: Tensor, target: Tensor) -> Expectation:
        """hidden: [N, d] after the last norm; target: int64 [N], the token that came next."""
        chunks = [self._chunk(h, t) for h, t in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True)]
        return _join(chunks)

    @torch.no_grad()
    def of_logits(self, logits: Tensor, target: Tensor) -> Expectation:
        """logits: [N, V], of any float dtype, as the model gives them; target: int64 [N]."""
        return _join(
            [self._expectation(part, t) for part, t in zip(logits.split(CHUNK), target.split(CHUNK), strict=True)]
        )

    def _chunk(self, hidden: Tensor, target: Tensor) -> Expectation:
        return self._expectation(self.shape(self.head(hidden)), target)

    def _expectation(self, logits: Tensor, target: Tensor) -> Expectation:
        ids = logits.topk(self.most, -1).indices if self.most else target.new_empty(len(target), 0)
        log_p = logits.log_softmax(-1, dtype=torch.float32)
        entropy = -torch.linalg.vecdot(log_p.exp(), log_p)
        return Expectation(entropy, -log_p.gather(-1, target[:, None])[:, 0], ids, log_p.gather(-1, ids).exp())


def _join(chunks: list[Expectation]) -> Expectation:
    return Expectation(*(torch.cat(column).cpu() for column in zip(*chunks, strict=True)))
