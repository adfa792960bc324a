"""Prompts of a map, streamed from a file or made by the generators of `tasks`: text only, no tokens yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

SUFFIXES = (".jsonl", ".txt")


@dataclass(frozen=True)
class Prompt:
    """One text to map: a prompt, with its answer where that is given instead of generated; or a conversation."""

    id: str
    prompt: str = ""
    task: str = "text"
    group: str = ""
    answer: str | None = None
    messages: tuple[dict[str, str], ...] = ()

    @property
    def closed(self) -> bool:
        """Does it bring its answer? Then none is generated."""
        return self.answer is not None or (bool(self.messages) and self.messages[-1]["role"] == "assistant")


class PromptSource(Protocol):
    """Where prompts come from: the same ones, in the same order, each time they are asked for."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this source from another, as JSON; no place of a machine's files."""
        ...

    @property
    def total(self) -> int: ...

    def __iter__(self) -> Iterator[Prompt]: ...


class PromptFile:
    """A .jsonl file of objects with `prompt` (and `task`, `id`, `group`, and `answer` or `completion`) or `messages`;
    or a .txt file with one prompt a line. All lines are checked at once, then read again as they are needed.

    Raises ValueError, with the line, for what is none of these and for an id that comes twice; OSError for a file that
    cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path}: prompts are read from {' or '.join(SUFFIXES)} files; name one of these")
        if not self.path.is_file():
            raise ValueError(f"{path}: no such file of prompts; check the path")
        if not self.total:
            raise ValueError(f"{path} holds no prompt; give at least one line")

    @cached_property
    def _scan(self) -> tuple[str, int]:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        ids: set[str] = set()
        for prompt in self:
            if prompt.id in ids:
                raise ValueError(f"{self.path}: two prompts have the id {prompt.id!r}; give each its own, or none")
            ids.add(prompt.id)
        return digest, len(ids)

    @property
    def identity(self) -> dict[str, Any]:
        return {"prompts": self.path.name, "sha256": self._scan[0]}

    @property
    def total(self) -> int:
        return self._scan[1]

    def __iter__(self) -> Iterator[Prompt]:
        with self.path.open(encoding="utf-8-sig", newline="\n") as file:  # a byte order mark is no part of a prompt
            try:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield self._prompt(line, number)
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error

    def _prompt(self, line: str, number: int) -> Prompt:
        where, fallback = f"{self.path}, line {number}", f"{self.path.stem}-{number}"
        if self.path.suffix.lower() == ".txt":
            return Prompt(fallback, line.rstrip("\r\n"), self.path.stem)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}); give one object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not an object; give one with `prompt` or `messages`")
        return of_row(row, where, fallback, self.path.stem)


def by_turns(tasks: Sequence[str], limit: int) -> list[int]:
    """The places of `limit` texts, the first of each task by turns, in their order. tasks: of each text."""
    turn: dict[str, int] = {}
    ranks = []
    for place, task in enumerate(tasks):
        turn[task] = turn.get(task, -1) + 1
        ranks.append((turn[task], place))
    return sorted(place for _, place in sorted(ranks)[:limit])


def of_row(row: dict[str, Any], where: str, id: str, task: str) -> Prompt:
    """A prompt from one row of a data file; id and task are for rows that name none. ValueError, naming `where`."""
    fields: dict[str, Any] = {"id": id, "task": task}
    for name in ("id", "task", "group", "prompt", "answer", "completion"):
        value = row.get(name)
        if value is None:
            continue
        if name == "id" and isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"{where}: `{name}` must be a string, not {type(value).__name__}")
        fields["answer" if name == "completion" else name] = _unicode(value, where)
    if fields.get("answer") == "":
        raise ValueError(f"{where}: the answer is empty; leave it out to have one generated")
    if (messages := row.get("messages")) is not None:
        if "prompt" in fields or "answer" in fields:
            raise ValueError(f"{where} has `messages` and `prompt` or `answer`; keep one of them")
        return Prompt(**fields, messages=_messages(messages, where))
    if not fields.get("prompt", "").strip():
        raise ValueError(f"{where} has no `prompt` (and no `messages`); it has {', '.join(row) or 'no fields'}")
    return Prompt(**fields)


def _messages(messages: Any, where: str) -> tuple[dict[str, str], ...]:
    fine = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not fine or not messages:
        raise ValueError(f'{where}: `messages` must be a list of {{"role": ..., "content": ...}}')
    return tuple({"role": _unicode(m["role"], where), "content": _unicode(m["content"], where)} for m in messages)


def _unicode(text: str, where: str) -> str:
    """The text. ValueError for half of a surrogate pair, which JSON can write and nothing can store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds {text[error.start]!r}, half a character; write it as UTF-8") from error
    return text
