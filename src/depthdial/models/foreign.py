"""Names and texts out of other people's files, made fit for one line on a terminal."""

from __future__ import annotations

MOST = 100  # characters


def shown(text: object, most: int = MOST) -> str:
    """`text` on one line, without quotes: signs that steer a terminal are escaped, what is too long is cut."""
    plain = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text)[: most + 1])
    return plain if len(plain) <= most else f"{plain[:most]}..."
