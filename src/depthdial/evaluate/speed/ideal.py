"""The least time a pass can take: the bytes it must read and the products it must compute, for the work its route asks.

Counted for a pass of N tokens: weights once for all tokens that share them, K/V projections of every token, Q, keys,
O and MLP of kept ones, routers of all and adapters of skipped ones, the embedding rows, the KV cache that kept tokens
attend to (once for each text), what is written to it, and the LM head for the tokens whose logits are asked for.
Activations are left out: they stay in the processor's caches. The larger of the two times is the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from depthdial.core.cost import Ledger
from depthdial.core.decision import Site
from depthdial.evaluate.speed.limits import Limits


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

    def seconds(self, limits: Limits) -> float:
        return max(self.read / limits.read, self.macs / limits.multiply)

    def bound(self, limits: Limits) -> str:
        """Which of the two is the limit."""
        return "reading" if self.read / limits.read >= self.macs / limits.multiply else "arithmetic"


@dataclass(frozen=True)
class Tokens:
    """The tokens of one pass. N of them."""

    keep: Tensor
    """bool [L, N]: which layers run for each."""
    positions: Tensor
    """int64 [N]: its place in its text."""
    texts: Tensor
    """int64 [N]: which text it belongs to."""
    logits: int
    """How many of them get logits."""
    decided: bool = True
    """False: the untouched base, no router runs."""

    def dense(self) -> Tokens:
        """The same tokens through the untouched base."""
        return Tokens(torch.ones_like(self.keep), self.positions, self.texts, self.logits, decided=False)


def work(ledger: Ledger, tokens: Tokens, sizes: Sizes) -> Work:
    """What one pass must do at least; see the top of this file."""
    count = tokens.positions.numel()
    read = count * sizes.hidden * sizes.weight + bool(tokens.logits) * ledger.head * sizes.weight
    macs = float(tokens.logits * ledger.head)
    for index, layer in enumerate(ledger.layers):
        keep = tokens.keep[index]
        kept = int(keep.sum())
        written = count if ledger.projects_kv else kept
        read += sizes.weight * (bool(written) * layer.kv + bool(kept) * (layer.attn + layer.mlp))
        macs += written * layer.kv + kept * (layer.attn + layer.mlp)
        seen = tokens.positions + 1 if layer.window is None else (tokens.positions + 1).clamp(max=layer.window)
        macs += float((seen * keep).sum()) * layer.attend
        read += layer.kv_width * sizes.cache * (_longest(seen, keep, tokens.texts) + written)
        if tokens.decided:
            router, adapter = _parts(ledger, index)
            read += sizes.part * (router + bool(kept < count) * adapter)
            macs += count * router + (count - kept) * adapter
    return Work(read, macs)


def seconds(ledger: Ledger, passes: Sequence[Tokens], sizes: Sizes, limits: Limits) -> float:
    """The least time of several passes, one after the other."""
    return sum(work(ledger, tokens, sizes).seconds(limits) for tokens in passes)


def ideal_speedup(
    ledger: Ledger, passes: Sequence[Tokens], sizes: Sizes, limits: Limits, against: Sizes | None = None
) -> float:
    """limit(dense) / limit(this route), for the same tokens. against: sizes of dense's numbers; None: these."""
    dense = seconds(ledger, [tokens.dense() for tokens in passes], against or sizes, limits)
    return dense / seconds(ledger, passes, sizes, limits)


def dense_bytes(ledger: Ledger, sizes: Sizes) -> int:
    """Bytes of weights that one pass of the untouched base reads."""
    return int(ledger.dense * sizes.weight)


def _parts(ledger: Ledger, index: int) -> tuple[int, int]:
    """Weights of a layer's router and of its adapter."""
    sites = [Site(index, unit) for unit in ("attn", "mlp", "layer")]
    return sum(ledger.always.get(s, 0) for s in sites), sum(ledger.skipped.get(s, 0) for s in sites)


def _longest(seen: Tensor, keep: Tensor, texts: Tensor) -> int:
    """Places of the cache read by kept tokens: those of one text share them."""
    longest = torch.zeros(int(texts.max()) + 1, dtype=torch.int64)
    longest.scatter_reduce_(0, texts, seen * keep, "amax")
    return int(longest.sum())
