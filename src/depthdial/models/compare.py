"""Two passes over one text compared at the LM head, without gradient: cross-entropy of both, KL, same choice or not.

`loss` is for training; here a token's logits are reduced to four numbers while they are in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdial.models.head import PLAIN, Shaping

CHUNK = 256
"""Tokens whose logits are held at once."""


class Compared(NamedTuple):
    """What each of N tokens says of two passes, all [N]."""

    ce: Tensor
    """fp32: cross-entropy of the model under test, nats."""
    base_ce: Tensor
    """fp32: cross-entropy of the base, nats."""
    kl: Tensor
    """fp32: KL(base || model), nats."""
    agree: Tensor
    """bool: is the base's first choice a first choice of the model? (bf16 logits tie: any of the tied ones counts)"""


def compare_rows(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Compared` of rows of logits. student, teacher: [N, V]; target: int64 [N]."""
    s, t = student.float(), teacher.float()
    s = s - s.amax(-1, keepdim=True)  # the first choice is 0 now, and nothing overflows
    t = t - t.amax(-1, keepdim=True)
    p = t.exp()
    mass = p.sum(-1)
    log_s, log_t = s.exp().sum(-1).log(), mass.log()
    kl = (p * (t - s)).sum(-1) / mass + log_s - log_t
    agree = ((t == 0) & (s == 0)).any(-1)
    at = target[:, None]
    return log_s - s.gather(-1, at).squeeze(-1), log_t - t.gather(-1, at).squeeze(-1), kl, agree


class HeadCompare:
    """`Compared` from last hidden states. `compile` fuses the arithmetic over the vocabulary (for a CPU)."""

    def __init__(self, head: nn.Module, shape: Shaping = PLAIN, compile: bool = False):
        self.head, self.shape, self.compiled = head, shape, compile
        self._rows: Callable = torch.compile(compare_rows, dynamic=False) if compile else compare_rows

    @torch.no_grad()
    def __call__(self, hidden: Tensor, teacher: Tensor, target: Tensor) -> Compared:
        """hidden, teacher: [N, d] after the last norm; target: int64 [N], the token that came next."""
        count = len(target)
        if short := -count % CHUNK if self.compiled else 0:  # one shape, compiled once
            hidden, teacher, target = (
                F.pad(hidden, (0, 0, 0, short)),
                F.pad(teacher, (0, 0, 0, short)),
                F.pad(target, (0, short)),
            )
        chunks = [
            self._rows(self.logits(h), self.logits(t), at)
            for h, t, at in zip(hidden.split(CHUNK), teacher.split(CHUNK), target.split(CHUNK), strict=True)
        ]
        return Compared(*(torch.cat(column)[:count] for column in zip(*chunks, strict=True)))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [N, d] after the last norm -> [N, V]."""
        return self.shape(self.head(hidden))
