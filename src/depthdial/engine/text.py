"""Text from tokens, one piece per token, as they come: no broken characters, no lost spaces, stop strings cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from depthdial.engine.stops import StopFinder

_CONTEXT = 8  # prompt tokens that stand before the first piece, so that its leading space is kept
_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)


class TextStream:
    """Pieces of text, `pieces[i]` from token i; joined they are the text.

    A token that ends inside a character gets an empty piece and the one that completes it the whole character.
    `ready` tokens have their final piece: later tokens cannot change them, not even by completing a stop string, nor
    can the end, which gives out half a character as it is. Another thread may read `ready` and then as many pieces at
    any moment: pieces are never taken away, and a token counts as ready only once its piece stands.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = ()):
        self.pieces: list[str] = []
        self.stopped = False
        self._tokenizer, self._stops = tokenizer, StopFinder(stops) if stops else None
        # what the wrapper does beside this is not asked for, and takes three times as long, twice a token
        self._fast = tokenizer.backend_tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else None
        self._ids = list(prompt[-_CONTEXT:])
        self._start, self._read = 0, len(self._ids)
        self._inside = False  # does the last token end inside a character?
        self._ready = self._held = 0  # tokens with their final piece; characters of all that are not ready

    @property
    def ready(self) -> int:
        """How many tokens have their final piece."""
        return min(self._ready, len(self.pieces) - self._inside)

    def push(self, token: int) -> bool:
        """Append a token; True when its text completes a stop string, which is then cut off."""
        self._ids.append(token)
        self._append(self._new_text(flush=False))
        return self.stopped

    def close(self) -> None:
        """No token follows: give out what was held back."""
        if not self.stopped:
            rest = self._new_text(flush=True)
            if rest:
                self._append(rest, last=True)
        self._inside = False
        self._ready = len(self.pieces)

    def _new_text(self, flush: bool) -> str:
        """What the tokens since the last piece add; "" while they end inside a character."""
        old = self._decode(self._ids[self._start : self._read])
        new = self._decode(self._ids[self._start :])
        if not flush:
            self._inside = new.endswith(_BROKEN)
        if len(new) <= len(old) or (self._inside and not flush):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return new[len(old) :]

    def _append(self, piece: str, last: bool = False) -> None:
        """Of a new token, or in place of the last one's empty piece."""
        if last:
            self._ready = min(self._ready, len(self.pieces) - 1)
            self.pieces[-1] = piece
        else:
            self.pieces.append(piece)
        if self._stops is None:
            self._ready = len(self.pieces)
            return
        cut = self._stops.push(piece)
        if cut is not None:
            self.stopped = True
            self._cut(cut)
            self._ready = len(self.pieces)
            return
        # tokens that hold any of the open characters must wait; so must those after them
        self._held += len(piece)
        while self._ready < len(self.pieces) and self._held - len(self.pieces[self._ready]) >= self._stops.open:
            self._held -= len(self.pieces[self._ready])
            self._ready += 1

    def _cut(self, count: int) -> None:
        """Take the last `count` characters off the pieces."""
        for i in range(len(self.pieces) - 1, -1, -1):
            gone = min(count, len(self.pieces[i]))
            self.pieces[i] = self.pieces[i][: len(self.pieces[i]) - gone]
            count -= gone

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        if self._fast is not None:
            return self._fast.decode(ids, skip_special_tokens=True)
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
