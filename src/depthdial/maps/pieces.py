"""The text of each token, special tokens included, so that joined the pieces are the whole text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no whole character
_MOST = 8  # tokens that one character can be spread over; more broken ones in a row are broken indeed


class Pieces:
    """Texts of tokens of one tokenizer; what was looked up once is remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._cache: dict[int, str] = {}
        self._anchor = tokenizer.encode("a", add_special_tokens=False)
        self._before = len(self._decode(self._anchor))

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """One piece per token. Of a character that is spread over several tokens the last one has it, the others have
        empty pieces."""
        pieces = [self.alone(i) for i in ids]
        at = 0
        while at < len(pieces):
            if _REPLACEMENT not in pieces[at]:
                at += 1
                continue
            end = self._whole(ids, pieces, at)
            if end is None:
                at += 1  # no character comes of it: shown as it is
                continue
            text = self._text(ids[at:end])
            pieces[at:end] = [""] * (end - at - 1) + [text]
            at = end
        return pieces

    def alone(self, token: int) -> str:
        """The text of one token by itself."""
        if token not in self._cache:
            self._cache[token] = self._text([token])
        return self._cache[token]

    def _whole(self, ids: Sequence[int], pieces: Sequence[str], start: int) -> int | None:
        """The end of the shortest stretch from `start` whose text has no broken character; None if there is none."""
        for end in range(start + 2, min(start + _MOST, len(ids)) + 1):
            if _REPLACEMENT not in self._text(ids[start:end]):
                return end
            if _REPLACEMENT not in pieces[end - 1]:
                return None
        return None

    def _text(self, ids: Sequence[int]) -> str:
        # after an anchor, since some decoders drop the space of a first token
        return self._decode([*self._anchor, *ids])[self._before :]

    def _decode(self, ids: Sequence[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(list(ids), **options))
