"""The text that is read: rows of tokens, and what each of them is.

Without a file it is that of the package, some 3,000 tokens of encyclopaedic prose (`maps/passages.txt`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from depthdial.maps.classes import TokenClasses
from depthdial.maps.prompts import PromptFile
from depthdial.maps.tasks import read_text
from depthdial.maps.texts import conversation_text
from depthdial.models.chat import TemplateRefused

LEAST = 64
"""Fewest tokens that say anything."""


@dataclass(frozen=True)
class Rows:
    """Texts as tokens. classes: of each token, one of `maps.classes`."""

    ids: list[list[int]]
    classes: list[list[str]]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.ids).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))


def check_data(data: Path | None) -> None:
    """ValueError, OSError: for a file that is no text and no prompts, before a model is loaded."""
    for _ in _texts(data):
        return


def rows_of(tokenizer: PreTrainedTokenizerBase, data: Path | None, tokens: int, length: int) -> Rows:
    """The first `tokens` tokens of a text, in rows of up to `length`.

    data: a .txt file of paragraphs with an empty line between, of which a row takes as many as it has room for; or the
    .jsonl file of `depthdial map --prompts`, one row each, in the chat template where there is one. Raises ValueError
    where there are fewer than `LEAST` tokens.
    """
    classes, found, room = TokenClasses(tokenizer), Rows([], []), tokens
    for ids in _rows(tokenizer, data, length):
        kinds = classes.lexical(ids)[:room]
        if any(kind != "template" for kind in kinds[1:]):  # else there is nothing to predict
            found.ids.append(ids[:room])
            found.classes.append(kinds)
            room -= len(kinds)
        if room < 2:
            break
    if found.tokens < LEAST:
        raise ValueError(f"{data or 'the text'} has fewer than {LEAST} tokens; give more text, or raise --tokens")
    return found


def _rows(tokenizer: PreTrainedTokenizerBase, data: Path | None, length: int) -> Iterator[list[int]]:
    paragraphs: list[str] = []
    for text in _texts(data):
        if not isinstance(text, str):
            yield _chat(tokenizer, text)[:length]
            continue
        paragraphs.append(text)
        ids = tokenizer("\n\n".join(paragraphs), verbose=False)["input_ids"]
        if len(ids) >= length:
            yield ids[:length]
            paragraphs = []
    if paragraphs:
        yield tokenizer("\n\n".join(paragraphs), verbose=False)["input_ids"]


def _texts(data: Path | None) -> Iterator[str | tuple[dict[str, str], ...]]:
    """Paragraphs, or conversations."""
    if data is not None and data.suffix.lower() == ".jsonl":
        for prompt in PromptFile(data):
            turns = [("user", prompt.prompt), ("assistant", prompt.answer)]
            yield prompt.messages or tuple({"role": role, "content": said} for role, said in turns if said is not None)
        return
    if data is not None and data.suffix.lower() != ".txt":
        raise ValueError(f"--data {data}: text is read from .txt and .jsonl files; name one of these")
    text = files("depthdial.maps").joinpath("passages.txt").read_text("utf-8") if data is None else read_text(data)
    yield from filter(None, map(str.strip, re.split(r"\n\s*\n", text)))


def _chat(tokenizer: PreTrainedTokenizerBase, messages: tuple[dict[str, str], ...]) -> list[int]:
    if tokenizer.chat_template and len(messages) > 1:  # a prompt alone is a text as it stands
        try:
            return list(conversation_text(tokenizer, messages, "").ids)
        except TemplateRefused:
            pass  # a template without that role: then as plain text
    return tokenizer("\n\n".join(message["content"] for message in messages), verbose=False)["input_ids"]
