"""The least time a pass can take: the bytes it must read and the products it must compute, for the work its route asks.

Counted for a pass of N tokens: weights once for all tokens that share them, K/V projections of every token that leaves
them, Q, keys, O and MLP of kept ones, what decides for the tokens that wait and adapters of skipped ones, the
embedding rows, the KV cache that kept tokens attend to (once for each text), what is written to it, and the LM head for
the tokens whose logits are asked for.
Activations are left out: they stay in the processor's caches. The larger of the two times is the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from depthdial.core.cost import Ledger
from depthdial.core.program import Program
from depthdial.evaluate.speed.limits import MachineLimits


@dataclass(frozen=True)
class Sizes:
    """Bytes of one number, and the width of the model."""

    weight: float
    """Of a linear weight: 2 in bf16, 1 in int8 (whose scales, one a row, are left out: under one percent)."""
    part: float
    """Of a weight of a router or an adapter."""
    cache: float
    """Of a number in the KV cache."""
    hidden: int
    """d, the length of an embedding row."""


class Work(NamedTuple):
    """What a pass must do at least."""

    read: float
    """Bytes."""
    macs: float
    """Multiply-accumulates."""

    def seconds(self, limits: MachineLimits) -> float:
        return max(self.read / limits.read, self.macs / limits.multiply)

    def bound(self, limits: MachineLimits) -> str:
        """Which of the two is the limit."""
        return "reading" if self.read / limits.read >= self.macs / limits.multiply else "arithmetic"


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
    routed: bool = True
    """False: the untouched base, no router runs, and the other fields are not read."""

    def dense(self) -> Path:
        """The same tokens through the untouched base."""
        return replace(self, routed=False)

    def visits(self, program: Program) -> int:
        """Layers run, of all tokens together."""
        if not self.routed:
            return sum(program.steps[v.steps[0]].base for v in program.visits) * self.positions.numel()
        return sum(int(self.ran[list(visit.steps)].any(0).sum()) for visit in program.visits)


def work(ledger: Ledger, path: Path, sizes: Sizes) -> Work:
    """What one pass must do at least; see the top of this file."""
    count = path.positions.numel()
    read = count * sizes.hidden * sizes.weight + bool(path.logits) * ledger.head * sizes.weight
    macs = float(path.logits * ledger.head)
    every, none = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    for s, (step, price) in enumerate(zip(ledger.program.steps, ledger.steps, strict=True)):
        unit = price.unit
        ran, keys = (path.ran[s], path.keys[s]) if path.routed else (every if step.base else none, path.positions + 1)
        runs = int(ran.sum())
        cache_writes = count if price.absent and path.routed else runs
        read += sizes.weight * (bool(cache_writes) * unit.kv + bool(runs) * (unit.attn + unit.mlp))
        macs += cache_writes * unit.kv + runs * (unit.attn + unit.mlp)
        keys = keys if unit.window is None else keys.clamp(max=unit.window)
        macs += float((keys * ran).sum()) * unit.attend
        read += unit.kv_width * sizes.cache * (_longest(keys, ran, path.texts) + cache_writes)
        if path.routed and step.routed != "no":
            waiting = int(path.here[s].sum())
            head = min(ledger.head, ledger.head if step.head_rows is None else step.head_rows * sizes.hidden)
            head = head if "logits" in step.shows else 0
            read += bool(waiting) * (sizes.weight * head + sizes.part * (price.look - head))
            read += bool(waiting - runs) * sizes.part * price.bypass
            macs += waiting * price.look + (waiting - runs) * price.bypass
    return Work(read, macs)


def seconds(ledger: Ledger, passes: Sequence[Path], sizes: Sizes, limits: MachineLimits) -> float:
    """The least time of several passes, one after the other."""
    return sum(work(ledger, path, sizes).seconds(limits) for path in passes)


def ideal_speedup(
    ledger: Ledger, passes: Sequence[Path], sizes: Sizes, limits: MachineLimits, against: Sizes | None = None
) -> float:
    """limit(dense) / limit(this route), for the same tokens. against: sizes of dense's numbers; None: these."""
    dense = seconds(ledger, [path.dense() for path in passes], against or sizes, limits)
    return dense / seconds(ledger, passes, sizes, limits)


def dense_bytes(ledger: Ledger, sizes: Sizes) -> int:
    """Bytes of weights that one pass of the untouched base reads."""
    return int(ledger.dense * sizes.weight)


def _longest(keys: Tensor, keep: Tensor, texts: Tensor) -> int:
    """Places of the cache read by tokens that run a step: those of one text share them."""
    longest = torch.zeros(int(texts.max()) + 1, dtype=torch.int64)
    longest.scatter_reduce_(0, texts, keys * keep, "amax")
    return int(longest.sum())
