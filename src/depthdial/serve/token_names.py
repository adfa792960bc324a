"""What one token looks like on its own: its text and its bytes, for log-probabilities."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerFast

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenNames:
    """Texts and bytes of single tokens; a token that is half a character has bytes that are no text."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._bytes = _byte_alphabet() if _is_byte_level(tokenizer) else None
        self._special = set(tokenizer.all_special_ids)
        self.of = lru_cache(maxsize=65536)(self._of)

    def entry(self, token: int, logprobs: dict[int, float], count: int | None) -> list[Any]:
        """[text, bytes, log-probability, [the likeliest, each as text, bytes, log-probability]]."""
        likeliest = sorted(logprobs.items(), key=lambda item: -item[1])[:count]
        return [
            *self.of(token),
            number(logprobs[token]),
            [[*self.of(i), number(value)] for i, value in likeliest],
        ]

    def _of(self, token: int) -> tuple[str, list[int]]:
        """The token's text, U+FFFD where its bytes are none, and its bytes."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if token in self._special or piece is None:
            data = (piece or "").encode()
        elif self._bytes is not None and all(c in self._bytes for c in piece):
            data = bytes(self._bytes[c] for c in piece)
        elif match := _BYTE.fullmatch(piece):
            data = bytes([int(match[1], 16)])
        else:
            data = piece.replace("\u2581", " ").encode()  # SentencePiece writes spaces so
        return data.decode(errors="replace"), list(data)


def _is_byte_level(tokenizer: Any) -> bool:
    return isinstance(tokenizer, PreTrainedTokenizerFast) and "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write bytes as printable characters: character to byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def number(value: float) -> float | None:
    """JSON has neither nan nor inf; the OpenAI API writes -9999.0 for what is impossible."""
    return None if math.isnan(value) else max(value, -9999.0)
