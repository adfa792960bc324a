"""Losses at the LM head, fused with it: a vocabulary's worth of logits exists for a few tokens at a time only.

The gradient with respect to the hidden states is computed in the forward pass (it is `(p - target) @ head`), so neither
logits nor probabilities are stored. The head itself is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
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


def reverse_kl_rows(student: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `kl_rows`, weight * KL(student || teacher)."""
    log_s, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    p_s, gap = log_s.exp(), log_s - log_t
    kl = (p_s * gap).sum(-1)
    return weight * kl, (p_s * (gap - kl[:, None]) * weight[:, None]).to(student.dtype)


def js_rows(student: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `kl_rows`, weight * the Jensen-Shannon divergence, times 4: near the teacher as steep as KL."""
    log_s, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    p_s, gap = log_s.exp(), log_s - log_m
    own = (p_s * gap).sum(-1)
    loss = 2 * (own + (log_t.exp() * (log_t - log_m)).sum(-1))
    return weight * loss, (2 * p_s * (gap - own[:, None]) * weight[:, None]).to(student.dtype)


DIVERGENCES = {"forward": kl_rows, "reverse": reverse_kl_rows, "js": js_rows}
"""Of the student from the teacher, by name."""
Divergence = Literal["forward", "reverse", "js"]


class _AtHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, other: Tensor, head: Tensor, weight: Tensor, rows: Callable, teach: bool):
        losses, grads = [], []
        for h, o, w in zip(hidden.split(CHUNK, 1), other.split(CHUNK), weight.split(CHUNK, 1), strict=True):
            known = o @ head.T if teach else o  # once for all copies
            found = [rows(of @ head.T, known, at) for of, at in zip(h, w, strict=True)]
            losses.append(torch.stack([loss for loss, _ in found]))
            grads.append(torch.stack([grad @ head for _, grad in found]))
        ctx.save_for_backward(torch.cat(grads, 1))
        return torch.cat(losses, 1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor):
        (grads,) = ctx.saved_tensors
        return grads * upstream[0][..., None].to(grads.dtype), None, None, None, None, None


class HeadLoss:
    """Loss per token at a frozen LM head. `compile` fuses the softmax arithmetic (twice as fast on a CPU).

    Hidden states may come in several copies: passes over the same tokens by several routes, for which the teacher's
    logits are computed once.
    """

    def __init__(
        self, head: nn.Module, softcap: float | None = None, compile: bool = False, divergence: Divergence = "forward"
    ):
        if softcap is not None or getattr(head, "bias", None) is not None:
            raise ValueError("training supports LM heads without bias and without logit soft-capping")
        assert isinstance(head.weight, Tensor)
        self.head = head.weight
        self.compiled = compile
        kl = DIVERGENCES[divergence]
        self._kl = torch.compile(kl, dynamic=False) if compile else kl
        self._ce = torch.compile(ce_rows, dynamic=False) if compile else ce_rows

    def kl(self, hidden: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        """weight * divergence from the teacher, fp32 [copies, N]. hidden: [copies, N, d] and teacher: [N, d], after the
        last norm; weight: fp32 [copies, N]."""
        return self._at_head(hidden, teacher, weight, self._kl, True)

    def ce(self, hidden: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """weight * cross-entropy, fp32 [copies, N]. hidden: [copies, N, d]; target: int64 [N]; weight: as `kl`."""
        return self._at_head(hidden, target, weight, self._ce, False)

    def _at_head(self, hidden: Tensor, other: Tensor, weight: Tensor, rows: Callable, teach: bool) -> Tensor:
        count = hidden.shape[1]
        if short := -count % CHUNK if self.compiled else 0:  # one shape, compiled once
            hidden, weight = F.pad(hidden, (0, 0, 0, short)), F.pad(weight, (0, short))
            other = F.pad(other, (0, 0, 0, short) if teach else (0, short))
        return _AtHead.apply(hidden, other, self.head, weight, rows, teach)[:, :count]
