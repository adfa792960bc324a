"""Losses at the LM head, fused with it: a vocabulary's worth of logits exists for a few tokens at a time only.

The gradient with respect to the hidden states is computed in the forward pass (it is `(p - target) @ head`), so neither
logits nor probabilities are stored. The head itself is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdial.models.head import PLAIN, Shaping

CHUNK = 256
"""Tokens whose logits are held at once."""
SAMPLED = 1024
"""Tokens drawn to stand for those outside a shortlist."""


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


class Shortlist(NamedTuple):
    """Part of the vocabulary that stands for all of it: some tokens, and a sample of the rest as one bucket."""

    ids: Tensor
    """int64 [K]"""
    rest: Tensor
    """int64 [R]: tokens drawn from the others."""
    scale: float
    """log of how many tokens each of `rest` stands for."""
    tail: Tensor
    """fp32 [N]: the log of what the teacher's logits sum up to, as exponentials, outside `ids`."""

    @classmethod
    @torch.no_grad()
    def of(cls, teacher: Tensor, head: Tensor, shape: Shaping, likeliest: int, sampled: int, key: int) -> Shortlist:
        """The `likeliest` tokens of each of the teacher's distributions, and `sampled` of the others, drawn by `key`.
        teacher: [N, d]; head: [V, d]."""
        size, wanted, total = len(head), head.new_zeros(len(head), dtype=torch.bool), []
        for part in teacher.split(CHUNK):
            logits = shape(part @ head.T)
            wanted[logits.topk(min(likeliest, size)).indices.flatten()] = True
            total.append(logits.float().logsumexp(-1))
        ids, others = wanted.nonzero().squeeze(-1), (~wanted).nonzero().squeeze(-1)
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(key))
        rest = others[order[:sampled].to(others.device)]
        all_of, few = torch.cat(total), head[ids]
        known = torch.cat([shape(part @ few.T).float().logsumexp(-1) for part in teacher.split(CHUNK)])
        share = (-torch.expm1(known - all_of)).clamp_min(1e-6)  # two sums in bf16: what is left of them may be noise
        tail = all_of + share.log() if len(others) else all_of - 60  # nothing is left
        return cls(ids, rest, math.log(max(len(others), 1) / max(len(rest), 1)), tail)


class _Shortlisted(torch.autograd.Function):
    """`_AtHead` over a shortlist: `rows` sees its tokens and the bucket of all others."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, teacher: Tensor, head: Tensor, shape: Shaping, weight: Tensor, rows: Callable,
        of: Shortlist,
    ):  # fmt: skip
        few, others = head[of.ids], head[of.rest]
        losses, grads = [], []
        for h, o, w, tail in zip(*_split(hidden, teacher, weight), of.tail.split(CHUNK), strict=True):
            known = torch.cat([shape(o @ few.T).float(), tail[:, None]], -1)
            found = []
            for own, at in zip(h, w, strict=True):
                rest, some = shape(own @ others.T).float(), shape(own @ few.T).float()
                bucket = rest.logsumexp(-1, keepdim=True) + of.scale if len(of.rest) else tail[:, None]
                loss, grad = rows(torch.cat([some, bucket], -1), known, at)
                up = shape.back(grad[:, :-1], some).to(head.dtype) @ few
                if len(of.rest):
                    up = up + shape.back(rest.softmax(-1) * grad[:, -1:], rest).to(head.dtype) @ others
                found.append((loss, up))
            losses.append(torch.stack([loss for loss, _ in found]))
            grads.append(torch.stack([up for _, up in found]))
        ctx.save_for_backward(torch.cat(grads, 1))
        return torch.cat(losses, 1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor):
        (grads,) = ctx.saved_tensors
        return grads * upstream[0][..., None].to(grads.dtype), None, None, None, None, None, None


def _split(hidden: Tensor, other: Tensor, weight: Tensor) -> tuple[Any, Any, Any]:
    return hidden.split(CHUNK, 1), other.split(CHUNK), weight.split(CHUNK, 1)


class _AtHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, other: Tensor, head: Tensor, shape: Shaping, weight: Tensor, rows: Callable,
        teach: bool,
    ):  # fmt: skip
        losses, grads = [], []
        for h, o, w in zip(*_split(hidden, other, weight), strict=True):
            known = shape(o @ head.T) if teach else o  # once for all copies
            found = []
            for own, at in zip(h, w, strict=True):
                logits = shape(own @ head.T)
                loss, grad = rows(logits, known, at)
                found.append((loss, shape.back(grad, logits) @ head))
            losses.append(torch.stack([loss for loss, _ in found]))
            grads.append(torch.stack([up for _, up in found]))
        ctx.save_for_backward(torch.cat(grads, 1))
        return torch.cat(losses, 1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor):
        (grads,) = ctx.saved_tensors
        return grads * upstream[0][..., None].to(grads.dtype), None, None, None, None, None, None


class HeadLoss:
    """Loss per token at a frozen LM head. `compile` fuses the softmax arithmetic (twice as fast on a CPU).

    Hidden states may come in several copies: passes over the same tokens by several routes, for which the teacher's
    logits are computed once. shortlist: how many of the teacher's likeliest tokens at each place make up, for all
    places together, the part of the vocabulary at which the student is compared, beside one bucket for the rest; None:
    all of it.
    """

    def __init__(
        self,
        head: nn.Module,
        shape: Shaping = PLAIN,
        compile: bool = False,
        divergence: str = "forward",
        shortlist: int | None = None,
    ):
        if getattr(head, "bias", None) is not None:
            raise ValueError("training supports LM heads without bias")
        assert isinstance(head.weight, Tensor)
        self.head, self.shape = head.weight, shape
        self.compiled, self.shortlist = compile, shortlist
        self._rows = kl = DIVERGENCES[divergence]
        self._kl = torch.compile(kl, dynamic=False) if compile else kl
        self._ce = torch.compile(ce_rows, dynamic=False) if compile else ce_rows

    def kl(self, hidden: Tensor, teacher: Tensor, weight: Tensor, key: int = 0) -> Tensor:
        """weight * divergence from the teacher, fp32 [copies, N]. hidden: [copies, N, d] and teacher: [N, d], after the
        last norm; weight: fp32 [copies, N]; key: of the sample that stands for the rest of the vocabulary."""
        if self.shortlist is not None:
            some = Shortlist.of(teacher, self.head, self.shape, self.shortlist, SAMPLED, key)
            return _Shortlisted.apply(hidden, teacher, self.head, self.shape, weight, self._rows, some)
        return self._at_head(hidden, teacher, weight, self._kl, True)

    def ce(self, hidden: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """weight * cross-entropy, fp32 [copies, N]. hidden: [copies, N, d]; target: int64 [N]; weight: as `kl`."""
        return self._at_head(hidden, target, weight, self._ce, False)

    def _at_head(self, hidden: Tensor, other: Tensor, weight: Tensor, rows: Callable, teach: bool) -> Tensor:
        count = hidden.shape[1]
        if short := -count % CHUNK if self.compiled else 0:  # one shape, compiled once
            hidden, weight = F.pad(hidden, (0, 0, 0, short)), F.pad(weight, (0, short))
            other = F.pad(other, (0, 0, 0, short) if teach else (0, short))
        return _AtHead.apply(hidden, other, self.head, self.shape, weight, rows, teach)[:, :count]
