"""A KV cache in which everything that nobody wrote, or that somebody gave back, is nan: who reads it is found out."""

from __future__ import annotations

import math

from depthdial.engine.cache import Cache
from depthdial.kernels.tensors import PAGE


def poison(cache: Cache) -> None:
    """From now on; the cache holds nothing yet."""
    assert cache.available == cache.pages and not cache.prefixes.idle
    take, drop, shrink = cache._take, cache._drop, cache.shrink

    def spoil(page: int, begin: int = 0) -> None:
        for part in (cache.k, cache.v):
            part[:, page, :, begin:] = math.nan

    def taken() -> int:
        page = take()
        spoil(page)  # what rested here as a prefix is gone
        return page

    def dropped(page: int) -> None:
        drop(page)
        if not cache._holders[page] and not cache.prefixes.holds(page):
            spoil(page)

    def shrunk(slot: int, length: int) -> None:
        shrink(slot, length)
        held = cache._held[slot]
        if length % PAGE and length // PAGE < len(held) and not cache.prefixes.holds(held[-1]):
            spoil(held[-1], length % PAGE)

    for page in range(cache.pages):
        spoil(page)
    vars(cache).update(_take=taken, _drop=dropped, shrink=shrunk)
