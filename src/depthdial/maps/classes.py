"""What tokens of English text are, one of `LEXICAL` each, for the question of which are cheap and which are dear.

All that is known of the tokenizer is the text of its tokens and its chat template.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from depthdial.maps.chat_marks import ChatMarks
from depthdial.maps.pieces import Pieces

_WORDS = """
a about above after again against all also although am an and another any are around as at be because been before
being below between both but by can could did do does doing down during each either every few for from further had
has have having he her here hers herself him himself his how i if in into is it its itself just may me might mine
more most much must my myself neither no nor not of off on once one only onto or other our ours out over own per
shall she should since so some such than that the their theirs them themselves then there these they this those
though through to too toward under until up upon us very was we were what when where whether which while who whom
whose why will with within without would yet you your yours yourself s t re ve ll d m
"""
FUNCTION_WORDS = frozenset(_WORDS.split())


class TokenClasses:
    """Finds the classes of tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._special, self._pieces = set(tokenizer.all_special_ids), Pieces(tokenizer)
        self._chat = ChatMarks(tokenizer)

    def lexical(self, ids: Sequence[int]) -> list[str]:
        """What each token of one document is: one of `LEXICAL`."""
        template, pieces = self._chat.find(ids)[0], [self._pieces.alone(token) for token in ids]
        return ["template" if template[t] else self._lexical(ids, pieces, t) for t in range(len(ids))]

    def _lexical(self, ids: Sequence[int], pieces: Sequence[str], t: int) -> str:
        if ids[t] in self._special:
            return "end mark"
        piece = pieces[t]
        if not piece.strip():
            return "white space"
        if any(c.isdigit() for c in piece):
            return "number"
        if not any(c.isalpha() for c in piece):
            return "punctuation"
        if self._continues(ids, pieces, t):
            return "word continuation"
        word = "".join(c for c in piece.lower() if c.isalpha())
        whole = t + 1 == len(ids) or not self._continues(ids, pieces, t + 1)
        return "function word" if whole and word in FUNCTION_WORDS else "content word"

    def _continues(self, ids: Sequence[int], pieces: Sequence[str], t: int) -> bool:
        return t > 0 and ids[t - 1] not in self._special and pieces[t][:1].isalpha() and pieces[t - 1][-1:].isalpha()
