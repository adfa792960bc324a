"""Which pages of the KV cache hold the beginning of a text, so that an equal beginning need not run again.

The K and V of a text depend on how it was run: on the plug-in, on the dial, on which of its tokens were read and which
written. So a page's key is a hash chain over those and over all tokens up to the page's end. This file is *not* about
who holds a page (`cache`).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Saved(NamedTuple):
    """A full page, with what its 64 tokens cost when they ran."""

    page: int
    depths: list[int]
    costs: list[float]


def first_key(*facts: object) -> bytes:
    """The start of a chain: everything beside the tokens that K and V depend on (plug-in, offset, mode)."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()


def next_key(before: bytes, tokens: Sequence[int], read: int | None = None, written: bytes | None = None) -> bytes:
    """The key of a page from the one before it and its own tokens. read: how many of these belong to the prompt, where
    K and V of the others are not those that a prompt's would have; None: they are, or all tokens do. written: what K
    and V of the others depend on beside the tokens (`Request.written_key`)."""
    facts = before + array("q", tokens if read is None else [*tokens, -1, read]).tobytes()
    facts += b"" if read is None or written is None else written
    return hashlib.blake2b(facts, digest_size=16).digest()


class Prefixes:
    """Saved pages by key; those that no sequence holds rest here, and the one unused longest is given up first."""

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        self._saved: dict[bytes, Saved] = {}
        self._key: dict[int, bytes] = {}
        self._resting: OrderedDict[int, None] = OrderedDict()

    @property
    def idle(self) -> int:
        """Pages that nobody holds."""
        return len(self._resting)

    @property
    def resting(self) -> Iterable[int]:
        """Those."""
        return self._resting

    def find(self, keys: Sequence[bytes]) -> list[Saved]:
        """The longest saved beginning of a chain."""
        found: list[Saved] = []
        for key in keys:
            if key not in self._saved:
                break
            found.append(self._saved[key])
        return found

    def idle_among(self, saved: Sequence[Saved]) -> int:
        """How many of these pages nobody holds: to use them takes as many from `idle`."""
        return sum(entry.page in self._resting for entry in saved)

    def save(self, key: bytes, entry: Saved) -> None:
        if self._enabled and key not in self._saved and entry.page not in self._key:
            self._saved[key] = entry
            self._key[entry.page] = key

    def use(self, page: int) -> None:
        """A sequence holds the page (again)."""
        self._resting.pop(page, None)

    def rest(self, page: int) -> bool:
        """The last sequence let the page go; False if it is not a saved one."""
        if page not in self._key:
            return False
        self._resting[page] = None
        return True

    def holds(self, page: int) -> bool:
        return page in self._key

    def forget(self, page: int) -> None:
        """The page will be written: it holds its prefix no longer."""
        if page in self._key:
            del self._saved[self._key.pop(page)]

    def evict(self) -> int:
        """Give up the page unused longest. KeyError if none rests."""
        page, _ = self._resting.popitem(last=False)
        self.forget(page)
        return page
