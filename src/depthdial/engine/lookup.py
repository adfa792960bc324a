"""Drafts without a model: what followed the last time the same few tokens stood in the prompt or the text so far.

Saxena's prompt lookup (2023). Summaries, edits and lists repeat what they were given; the longer the repetition that
is under way, the likelier it goes on, so a find says how long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LENGTHS = (3, 2)
"""Tokens that must be equal, longest first."""
LONGEST = 16
"""Equal tokens beyond this are not counted."""


class Found(NamedTuple):
    """A place whose continuation may be the text's own."""

    at: int
    """The place in the text that follows the earlier occurrence."""
    matched: int
    """Tokens before it that equal the end of the text, at most `LONGEST`."""


class Lookup:
    """The latest place of every short run of tokens of one growing text. Each token is entered once."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._entered = 0

    def find(self, tokens: Sequence[int]) -> Found | None:
        """The latest earlier occurrence of the end of the text. tokens: all of it; what was there before stays."""
        for end in range(self._entered + 1, len(tokens)):  # the end itself is followed by nothing yet
            for length in LENGTHS:
                if end >= length:
                    self._after[tuple(tokens[end - length : end])] = end
        self._entered = max(self._entered, len(tokens) - 1)
        for length in LENGTHS:
            at = self._after.get(tuple(tokens[-length:])) if len(tokens) > length else None
            if at is not None:
                return Found(at, _matched(tokens, at))
        return None


def copied(tokens: Sequence[int], at: int, count: int) -> list[int]:
    """`count` tokens from place `at` on; a text that repeats itself goes on repeating."""
    found = list(tokens[at : at + count])
    while len(found) < count:
        found.append(found[at + len(found) - len(tokens)])
    return found


def _matched(tokens: Sequence[int], at: int) -> int:
    count = 0
    while count < min(at, LONGEST) and tokens[at - 1 - count] == tokens[len(tokens) - 1 - count]:
        count += 1
    return count
