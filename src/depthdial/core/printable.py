"""Foreign text on one line of a terminal: what could move a cursor, change colours or reorder a line is escaped."""

from __future__ import annotations

import unicodedata

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
"""For `str.translate`: a model may write escape sequences; they are shown as symbols instead of being obeyed."""
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN = frozenset(("Cc", "Cs", "Zl", "Zp"))


def printable(text: str) -> str:
    r"""The text with control characters (line breaks and tabs, too), marks of writing direction and halves of surrogate
    pairs as escapes: `\x1b` is four characters then. For names and messages; text of a model may hold line breaks."""
    return "".join(_escape(sign) if _unseen(sign) else sign for sign in text)


def printable_lines(text: str) -> str:
    """The same for a text of lines that we made: its line breaks stay."""
    return "\n".join(map(printable, text.split("\n")))


def _unseen(sign: str) -> bool:
    return sign in _BIDI or unicodedata.category(sign) in _UNSEEN


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
