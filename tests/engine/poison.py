"""A KV cache in which everything that nobody wrote, or that somebody gave back, is nan: who reads it is found out."""

from __future__ import annotations

import math
from typing import Any

from depthdial.engine.cache import Cache
from depthdial.kernels.tensors import PAGE


def poison(cache: Cache) -> None:
    """From now on; the cache holds nothing yet."""
    assert cache.available == cache.pages and not cache.prefixes.idle
    take, give, shrink = cache._take, cache._give, cache.shrink

    def spoil(units: Any, begin: int = 0) -> None:
        for part in (cache.k, cache.v):
            part[units, :, begin:] = math.nan

    def taken(number: int) -> Any:
        units = take(number)
        spoil(units)  # what rested here as a prefix is gone
        return units

    def given(units: Any) -> None:
        give(units)
        spoil(units)

    def shrunk(slot: int, length: int) -> None:
        shrink(slot, length)
        held = cache._held[slot]
        if length % PAGE and length // PAGE < len(held) and not cache.prefixes.holds(held[-1]):
            units = cache._units[held[-1]]
            spoil(units[units >= 0], length % PAGE)

    spoil(slice(None))
    vars(cache).update(_take=taken, _give=given, shrink=shrunk)
