"""Classes of tokens in English text: what a token is, exactly one of `LEXICAL`, and where it stands, any of `CONTEXT`,
which overlap with those and each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from depthdial.maps.chat_marks import ChatMarks
from depthdial.maps.classes import TokenClasses
from depthdial.maps.schema import LEXICAL
from heldout.interval import clustered_mean

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


class PlaceClasses:
    """Finds the classes of tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._chat, self._lexical = ChatMarks(tokenizer), TokenClasses(tokenizer)

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

    def document(self, ids: Sequence[int]) -> list[set[str]]:
        """The classes of each token of one document (or of a piece cut from one)."""
        written, answer = self._chat.find(ids)
        asked = any(place is not None for place in answer)
        lexical = self._lexical.lexical(ids)
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
