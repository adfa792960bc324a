"""What counts as written: not the first token of a text, since the pass that gave it read the prompt's last one."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def written(figures: list[T]) -> list[T]:
    """Of one figure for each pass that gave a token, in order, those of passes over written tokens: all but the first.
    Of a text of one token it is that one."""
    return figures[1:] or figures
