"""Losses at the LM head, fused with it: a vocabulary's worth of logits exists for a few tokens at a time only.

The gradient with respect to the hidden states is computed in the forward pass (it is `(p - target) @ head`), so neither
logits nor probabilities are stored. The head itself is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 256
"""Tokens whose logits are held at once."""


def kl_rows(student: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight * KL(teacher || student) of each row of logits, fp32 [N], and its gradient for the student's, [N, V]."""
    log_s, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    p_t = log_t.exp()
    loss = weight * (p_t * (log_t - log_s)).sum(-1)
    return loss, ((log_s.exp() - p_t) * weight[:, None]).to(student.dtype)


def ce_rows(student: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight * cross-entropy of each row of logits against a token id, fp32 [N], and its gradient, [N, V]."""
    log_s = student.float().log_softmax(-1)
    hit = target[:, None] == torch.arange(student.shape[-1], device=student.device)
    loss = -weight * log_s.gather(-1, target[:, None]).squeeze(-1)
    return loss, ((log_s.exp() - hit.float()) * weight[:, None]).to(student.dtype)


class _AtHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, other: Tensor, head: Tensor, weight: Tensor, rows: Callable, teach: bool):
        losses, grads = [], []
        for h, o, w in zip(hidden.split(CHUNK), other.split(CHUNK), weight.split(CHUNK), strict=True):
            loss, grad = rows(h @ head.T, o @ head.T if teach else o, w)
            losses.append(loss)
            grads.append(grad @ head)
        ctx.save_for_backward(torch.cat(grads))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor):
        (grads,) = ctx.saved_tensors
        return grads * upstream[0][:, None].to(grads.dtype), None, None, None, None, None


class HeadLoss:
    """Loss per token at a frozen LM head. `compile` fuses the softmax arithmetic (twice as fast on a CPU)."""

    def __init__(self, head: nn.Module, softcap: float | None = None, compile: bool = False):
        if softcap is not None or getattr(head, "bias", None) is not None:
            raise ValueError("training supports LM heads without bias and without logit soft-capping")
        assert isinstance(head.weight, Tensor)
        self.head = head.weight
        self._kl = torch.compile(kl_rows, dynamic=False) if compile else kl_rows
        self._ce = torch.compile(ce_rows, dynamic=False) if compile else ce_rows

    def kl(self, hidden: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        """weight * KL(teacher || student), fp32 [N]. hidden, teacher: [N, d] after the last norm; weight: fp32 [N]."""
        return _AtHead.apply(hidden, teacher, self.head, weight, self._kl, True)

    def ce(self, hidden: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """weight * cross-entropy, fp32 [N]. hidden: [N, d]; target: int64 [N]; weight: fp32 [N]."""
        return _AtHead.apply(hidden, target, self.head, weight, self._ce, False)
