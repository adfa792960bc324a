"""Prompts for the question where depth goes: the six tasks of FlexiDepth's paper, from a seed.

Text tasks (copy, summarise, continue) are answered by the model. Number tasks (repeat, add, multiply) come with their
right answers, which are forced: what is measured is then the depth of a calculation, whether or not the model can do
it. The three tasks of a kind share their material, so that they are compared on the same passages and lists.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from depthdial.maps.prompts import Prompt

TEXT_TASKS = {
    "copy": "Repeat this text word for word, and write nothing else:\n\n{}",
    "summarise": "Summarise this text in one short sentence:\n\n{}",
    "continue": "Continue this text:\n\n{}",
}
NUMBER_TASKS = {
    "repeat": ("Repeat this list of numbers: {}", ", ", None),
    "add": ("Add these numbers: {}", " + ", sum),
    "multiply": ("Multiply these numbers: {}", " × ", math.prod),
}
TASKS = (*TEXT_TASKS, *NUMBER_TASKS)
LEAST, MOST = 30, 60
"""Words of a passage."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Tasks:
    """`count` prompts of each task, the same for the same seed; of a text task at most one for each passage.

    text: the passages' source, paragraphs with an empty line between; None is the package's own (some 10 KB).
    Raises ValueError for an unknown task, and for a text without passages of `LEAST` words.
    """

    def __init__(self, names: Sequence[str] = TASKS, count: int = 100, seed: int = 0, text: str | None = None):
        if unknown := [name for name in names if name not in TASKS]:
            raise ValueError(f"unknown task {unknown[0]!r}; the tasks are {', '.join(TASKS)}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"name each task once; the tasks are {', '.join(TASKS)}")
        if count < 1:
            raise ValueError(f"the number of prompts of a task must be at least 1, not {count}")
        self.names, self.count, self.seed = tuple(names), count, seed
        self._text = files("depthdial.maps").joinpath("passages.txt").read_text("utf-8") if text is None else text
        self._own = text is None
        self.passages = passages(self._text)
        if not self.passages and any(name in TEXT_TASKS for name in names):
            raise ValueError(f"the text has no paragraph of at least {LEAST} words; give a longer one")

    @property
    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(self._text.encode()).hexdigest()
        return {"tasks": list(self.names), "count": self.count, "seed": self.seed, "text_sha256": digest}

    @property
    def total(self) -> int:
        return sum(self._count(name) for name in self.names)

    def _count(self, name: str) -> int:
        return min(self.count, len(self.passages)) if name in TEXT_TASKS else self.count

    def __iter__(self) -> Iterator[Prompt]:
        for name in self.names:
            make = self._text_prompts if name in TEXT_TASKS else self._number_prompts
            yield from make(name)

    def _text_prompts(self, name: str) -> Iterator[Prompt]:
        sample = random.Random(f"{self.seed} passages").sample(self.passages, self._count(name))
        for i, (paragraph, passage) in enumerate(sample):
            yield Prompt(f"{name}-{i}", TEXT_TASKS[name].format(passage), name, f"paragraph-{paragraph}")

    def _number_prompts(self, name: str) -> Iterator[Prompt]:
        draw = random.Random(f"{self.seed} numbers")
        ask, sign, solve = NUMBER_TASKS[name]
        for i in range(self.count):
            numbers = [draw.randint(2, 99) for _ in range(draw.randint(2, 5))]
            answer = sign.join(map(str, numbers)) + (f" = {solve(numbers)}" if solve else "")
            yield Prompt(f"{name}-{i}", ask.format(", ".join(map(str, numbers))), name, f"numbers-{i}", answer)


def read_text(path: str | Path) -> str:
    """A file of passages. Raises ValueError for one that is not UTF-8, OSError for one that cannot be read."""
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def passages(text: str) -> list[tuple[int, str]]:
    """Whole sentences from one paragraph each, `LEAST` to `MOST` words, with the paragraph's number: every start of
    which a passage can be made."""
    result = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
        sentences = _SENTENCE.split(" ".join(paragraph.split()))
        for start in range(len(sentences)):
            passage: list[str] = []
            for sentence in sentences[start:]:
                words = sum(len(s.split()) for s in (*passage, sentence))
                if words > MOST:
                    break
                passage.append(sentence)
            if sum(len(s.split()) for s in passage) >= LEAST:
                result.append((number, " ".join(passage)))
    return result
