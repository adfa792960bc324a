"""Classes of tokens in English text, for the question of which tokens are cheap and which are dear.

Two kinds of class. What a token *is*: exactly one of `LEXICAL`. And where it stands: any of `CONTEXT`, which overlap
with those and each other. All that is known of the tokenizer is the text of its tokens and its chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from depthdial.maps.chat_marks import ChatMarks
from depthdial.maps.interval import clustered_mean
from depthdial.maps.schema import LEXICAL

CONTEXT = (
    "repeated token",
    "repeated pair",
    "new token",
    "content word, seen before",
    "content word, new",
    "prompt",
    "answer",
    "start of answer",
)
START = 3
"""Tokens that are the start of an answer."""
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
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._pieces: dict[int, str] = {}
        self._anchor = tokenizer.encode("a", add_special_tokens=False)
        self._chat = ChatMarks(tokenizer)

    def rows(self, input_ids: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """Which tokens are of which class, bool [B, T] by name (`LEXICAL` and `CONTEXT`).

        input_ids, position_ids: int64 [B, T]; a document starts wherever the position is 0.
        """
        found = {name: torch.zeros(input_ids.shape, dtype=torch.bool) for name in (*LEXICAL, *CONTEXT)}
        for r, (ids, positions) in enumerate(zip(input_ids.tolist(), position_ids.tolist(), strict=True)):
            starts = [t for t, place in enumerate(positions) if place == 0]
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                for t, names in enumerate(self.document(ids[start:end]), start):
                    for name in names:
                        found[name][r, t] = True
        return found

    def lexical(self, ids: Sequence[int]) -> list[str]:
        """What each token of one document is: one of `LEXICAL`."""
        return self._kinds(ids, self._chat.find(ids)[0])

    def _kinds(self, ids: Sequence[int], written: Sequence[bool]) -> list[str]:
        pieces = self.pieces(ids)
        return ["template" if written[t] else self._lexical(ids, pieces, t) for t in range(len(ids))]

    def document(self, ids: Sequence[int]) -> list[set[str]]:
        """The classes of each token of one document (or of a piece cut from one)."""
        written, answer = self._chat.find(ids)
        asked = any(place is not None for place in answer)
        lexical = self._kinds(ids, written)
        tokens: set[int] = set()
        pairs: set[tuple[int, int]] = set()
        classes: list[set[str]] = []
        for t, token in enumerate(ids):
            here = {lexical[t]}
            if not written[t]:
                pair = (ids[t - 1], token) if t else None
                again = token in tokens
                here.add("repeated token" if again else "new token")
                if pair in pairs:
                    here.add("repeated pair")
                if lexical[t] == "content word":
                    here.add("content word, seen before" if again else "content word, new")
                if (place := answer[t]) is not None:
                    here |= {"answer", "start of answer"} if place < START else {"answer"}
                elif asked:
                    here.add("prompt")
                tokens.add(token)
                pairs |= {pair} if pair else set()
            classes.append(here)
        return classes

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token with the space before it, if it has one."""
        if new := sorted({*ids} - self._pieces.keys()):
            options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
            # after an anchor, since some decoders drop the space of a first token
            before = len(self._tokenizer.decode(self._anchor, **options))
            self._pieces |= {i: str(self._tokenizer.decode([*self._anchor, i], **options))[before:] for i in new}
        return [self._pieces[i] for i in ids]

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


@dataclass(frozen=True)
class ClassDepth:
    """How deep one class of tokens goes. `low` and `high` bound the mean at 95 % (over rows)."""

    name: str
    tokens: int
    share: float
    layers: float
    low: float
    high: float


def depth_table(classes: Mapping[str, Tensor], layers: Tensor, row: Tensor) -> list[ClassDepth]:
    """Mean layers used by class; classes without tokens are left out.

    classes: bool [N] by name; layers: [N]; row: int64 [N], the row or document of each token.
    """
    found = []
    for name, where in classes.items():
        if size := int(where.sum()):
            mean, half = clustered_mean(layers[where].float(), row[where])
            found.append(ClassDepth(name, size, size / len(layers), mean, mean - half, mean + half))
    return found
