"""The least time a pass can take, by the work that its route asks for (`core.work`) and what the machine can do: the
larger of reading and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from depthdial.core.cost import Ledger
from depthdial.core.work import Path, Sizes, Work, work
from depthdial.evaluate.speed.limits import MachineLimits


def least(of: Work, limits: MachineLimits) -> float:
    """Seconds."""
    return max(of.bytes / limits.read, of.macs / limits.multiply)


def bound(of: Work, limits: MachineLimits) -> str:
    """Which of the two is the limit."""
    return "reading" if of.bytes / limits.read >= of.macs / limits.multiply else "arithmetic"


def seconds(ledger: Ledger, passes: Sequence[Path], sizes: Sizes, limits: MachineLimits) -> float:
    """The least time of several passes, one after the other."""
    return sum(least(work(ledger, path, sizes), limits) for path in passes)


def ideal_speedup(
    ledger: Ledger, passes: Sequence[Path], sizes: Sizes, limits: MachineLimits, against: Sizes | None = None
) -> float:
    """limit(dense) / limit(this route), for the same tokens. against: sizes of dense's numbers; None: these."""
    dense = seconds(ledger, [path.dense() for path in passes], against or sizes, limits)
    return dense / seconds(ledger, passes, sizes, limits)


def dense_bytes(ledger: Ledger, sizes: Sizes) -> int:
    """Bytes of weights that one pass of the untouched base reads."""
    return int(ledger.dense * sizes.weight)
