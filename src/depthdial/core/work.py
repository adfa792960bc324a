"""What a pass must read and compute, step by step: bytes of weights, of K and V, and multiply-accumulates.

Counted for a pass of N tokens: weights once for all tokens that share them, K/V projections of every token that leaves
them, Q, keys, O and MLP of kept ones, what decides for the tokens that wait and adapters of skipped ones, the
embedding rows, the KV cache that kept tokens attend to (once for each text), what is written to it, and the LM head for
the tokens whose logits are asked for. Activations are left out: they stay in the processor's caches. What executors
count of weights and keys is this (tests/engine/test_bytes.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from depthdial.core.cost import Ledger
from depthdial.core.program import Program


@dataclass(frozen=True)
class Sizes:
    """Bytes of one number, and the width of the model."""

    weight: float
    """Of a linear weight: 2 in bf16, about 1 in int8 and 0.625 in int4, scales and minima included."""
    part: float
    """Of a weight of a router or an adapter."""
    cache: float
    """Of a number in the KV cache."""
    hidden: int
    """d, the length of an embedding row."""
    outside: float | None = None
    """Of the embedding and the LM head, where it differs from `weight`."""

    @property
    def head(self) -> float:
        return self.weight if self.outside is None else self.outside


class Work(NamedTuple):
    """What a pass must do at least."""

    weights: float
    """Bytes of weights that it reads."""
    keys: float
    """Bytes of K and V that it reads,"""
    left: float
    """and that it writes."""
    macs: float
    """Multiply-accumulates."""

    @property
    def bytes(self) -> float:
        return self.weights + self.keys + self.left


@dataclass(frozen=True)
class Path:
    """The way of N tokens through the S steps of a program: those of one pass, or of one text."""

    ran: Tensor
    """bool [S, N]: which steps run for each."""
    here: Tensor
    """bool [S, N]: at which steps it waits, so that their routers run for it."""
    keys: Tensor
    """int64 [S, N]: the keys it attends to where it runs a step, its own among them."""
    positions: Tensor
    """int64 [N]: its place in its text."""
    texts: Tensor
    """int64 [N]: which text it belongs to."""
    logits: int = 0
    """How many of them get logits."""
    decided: bool = True
    """False: the untouched base, no router runs, and the other fields are not read."""

    def dense(self) -> Path:
        """The same tokens through the untouched base."""
        return replace(self, decided=False)

    def visits(self, program: Program) -> int:
        """Layers run, of all tokens together."""
        if not self.decided:
            return sum(program.steps[v.steps[0]].base for v in program.visits) * self.positions.numel()
        return sum(int(self.ran[list(visit.steps)].any(0).sum()) for visit in program.visits)


def work(ledger: Ledger, path: Path, sizes: Sizes) -> Work:
    """What one pass must do at least; see the top of this file."""
    count = path.positions.numel()
    weights = (count * sizes.hidden + bool(path.logits) * ledger.head) * sizes.head
    keys, left, macs = 0.0, 0.0, float(path.logits * ledger.head)
    every, none = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    for s, (step, price) in enumerate(zip(ledger.program.steps, ledger.steps, strict=True)):
        unit = price.unit
        ran, seen = (path.ran[s], path.keys[s]) if path.decided else (every if step.base else none, path.positions + 1)
        kept = int(ran.sum())
        written = count if price.absent else kept
        weights += sizes.weight * (bool(written) * unit.kv + bool(kept) * (unit.attn + unit.mlp))
        macs += written * unit.kv + kept * (unit.attn + unit.mlp)
        seen = seen if unit.window is None else seen.clamp(max=unit.window)
        macs += float((seen * ran).sum()) * unit.attend
        keys += unit.kv_width * sizes.cache * _longest(seen, ran, path.texts)
        left += unit.kv_width * sizes.cache * written
        if path.decided and step.routed != "no":
            waiting = int(path.here[s].sum())
            shown = min(ledger.head, ledger.head if step.head_rows is None else step.head_rows * sizes.hidden)
            shown = shown if "logits" in step.shows else 0
            weights += bool(waiting) * (sizes.head * shown + sizes.part * (price.look - shown))
            weights += bool(waiting - kept) * sizes.part * price.bypass
            macs += waiting * price.look + (waiting - kept) * price.bypass
    return Work(weights, keys, left, macs)


def _longest(seen: Tensor, keep: Tensor, texts: Tensor) -> int:
    """Places of the cache read by tokens that run a step: those of one text share them."""
    longest = torch.zeros(int(texts.max()) + 1, dtype=torch.int64)
    longest.scatter_reduce_(0, texts, seen * keep, "amax")
    return int(longest.sum())
