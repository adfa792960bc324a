"""Data files to records: conversations or plain texts with their source. No tokens here (see `encode`, `pack`)."""

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from depthdial.train.files import File, Source, sources_of
from depthdial.train.formats import Place
from depthdial.train.messages import Exclusion, Message, shown
from depthdial.train.shapes import JsonRow, fit, misfit

# A plain text file becomes records of about this many characters, so that sampling and splits have some to choose from.
CHUNK = 16_384
NO_TEXT = "without text"
REASONS = 6
"""Reasons why rows are left out that one message names."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One training document: a conversation (`messages` not empty) or a plain `text`.

    source: the row's `source` field, else the file's name without suffixes; `/split` is added when the row names one.
    ends: False where a plain text goes on in the next record, so that no end-of-document token follows.
    context: numbers of messages that are no target, though the assistant says them.
    where: file and line, for messages.
    """

    source: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    ends: bool = True
    context: tuple[int, ...] = ()
    where: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """What makes two records the same for a split: first user message or plain text, case and spaces ignored."""
        question = next((m["content"] for m in self.messages if m["role"] == "user"), None)
        return " ".join((self.text or str(self.messages) if question is None else question).lower().split())


def read(
    data: str | Path | Source | Sequence[str | Path],
    *,
    keep: Sequence[str] = ("*",),
    drop: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> list[Record]:
    """Read what `files.sources_of` accepts into records, in the order of files and rows.

    A file named .txt, packed or not, is plain text; any other holds rows of one of `shapes.SHAPES`. Rows that fit none
    are left out; the log says once a file how many, why, and where the first one stands, and which fields nothing is
    made of.
    keep, drop: glob patterns on `Record.source` or its last part after `/` ("kilt_*"); a row must match one of `keep`,
    none of `drop`.
    limit: at most this many records, drawn evenly over all files with `seed`.
    strict: a row that fits no shape is an error.
    Raises ValueError, one line with the remedy: no such file, folder without data files, empty or broken file, no row
    with text in it, every row filtered out.
    """
    sources = [data] if isinstance(data, Source) else sources_of(data)
    everything = [record for source in sources for record in _records(source, strict)]
    records = [r for r in everything if _matches(r.source, keep) and not _matches(r.source, drop)]
    if not records:
        seen = ", ".join(sorted({r.source for r in everything})[:12])
        raise ValueError(
            f"every row is filtered out by keep={list(keep)} drop={list(drop)}; loosen them (sources seen: {seen})"
        )
    if limit is not None and limit < len(records):
        if limit < 1:
            raise ValueError(f"limit is {limit}; give a positive number of records")
        records = [records[i] for i in sorted(random.Random(seed).sample(range(len(records)), limit))]
    return records


def holdout(records: Iterable[Record], fraction: float, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Split into (train, held out) by a hash of each record's `key`: about `fraction` of the keys are held out.

    The side of a record depends on its key and the seed alone: not on order, nor on which other records there are, and
    all answers to the same first question fall on one side. Either list may be empty for a handful of records.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; give a number from 0 to 1")
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        digest = hashlib.blake2b(f"{seed}\n{record.key}".encode(), digest_size=8).digest()
        sides[int.from_bytes(digest) < fraction * 2**64].append(record)
    return sides


def digest(records: Iterable[Record]) -> str:
    """What tells these records from others to learn: contents and order, not names of files or sources."""
    total = hashlib.blake2b(digest_size=16)
    for record in records:
        contents = json.dumps([record.messages, record.text, record.ends, record.context])  # half characters escaped
        total.update(contents.encode() + b"\0")
    return total.hexdigest()


def _matches(source: str, patterns: Sequence[str]) -> bool:
    last = source.rpartition("/")[2]
    return any(fnmatchcase(source, p) or fnmatchcase(last, p) for p in patterns)


def _records(source: Source, strict: bool) -> list[Record]:
    """The records of one file or data set; the log names rows that are left out, and fields that are not used."""
    if isinstance(source, File) and source.plain:
        chunks = list(_chunks(source.text()))
        return [Record(source.stem, text=c, ends=i == len(chunks), where=f"{source}") for i, c in enumerate(chunks, 1)]
    records, count, reasons, unused = [], 0, dict[str, list[Place]](), dict[str, Place]()
    for place, row in source.rows():
        count += 1
        try:
            record, names = _record(row, source.stem, f"{source} {place}")
        except (Exclusion, ValueError) as reason:
            if strict and isinstance(reason, ValueError):
                raise ValueError(f"{source} {place}: {reason} (strict: nothing is left out)") from None
            reasons.setdefault(str(reason), []).append(place)
            continue
        records.append(record)
        for name in sorted(names):
            unused.setdefault(name, place)
    left = by_reason(reasons)
    if not count:
        raise ValueError(f"{source}: no rows; give a file with at least one row of text")
    if not records and set(reasons) == {NO_TEXT}:
        raise ValueError(f"{source}: no text in any row; a conversation needs an assistant message, a text some words")
    if not records:
        raise ValueError(f"{source}: no row can be learnt from: {left}")
    if left:
        log.warning("%s: %d of %d rows left out: %s", source, count - len(records), count, left)
    if unused:
        names = ", ".join(f"{shown(name)} (first in {place})" for name, place in unused.items())
        log.warning("%s: fields not used: %s", source, names)
    return records


def by_reason(reasons: Mapping[str, Sequence[Place]]) -> str:
    """What is left out, with the number of times and the first place of each reason."""
    text = "; ".join(f"{why} ({len(at)}, first in {at[0]})" for why, at in list(reasons.items())[:REASONS])
    return text + (f"; and {len(reasons) - REASONS} reasons more" if len(reasons) > REASONS else "")


def _record(row: object, stem: str, where: str) -> tuple[Record, frozenset[str]]:
    """The record, and the fields that it does not use. Raises ValueError, with the reason, for a row that does not fit;
    Exclusion for one that is not learnt from."""
    if isinstance(row, ValueError):
        raise row
    form = fit(row) if isinstance(row, dict) else None
    if form is None or not isinstance(row, dict):
        raise ValueError(misfit(row))
    source, content = _source(row, stem), form.content
    if isinstance(content, str):
        record, unused = Record(source, text=content.replace("\r\n", "\n"), where=where), form.unused
    else:
        talk = content.tidy()
        record = Record(source, tuple(talk.messages), where=where, context=tuple(sorted(talk.context)))
        unused = form.unused | talk.unused
    if not record.messages and not record.text.strip():
        raise Exclusion(NO_TEXT)
    return record, unused


def _source(row: JsonRow, stem: str) -> str:
    names = [row.get("source") or stem, row.get("split")]
    return "/".join(str(n) for n in names if isinstance(n, str) and n)


def _chunks(text: str) -> Iterator[str]:
    """Cut at the last paragraph, line or word end before `CHUNK` characters; the pieces join to `text` exactly."""
    start = 0
    while len(text) - start > CHUNK:
        window = text[start : start + CHUNK]
        cut = next((at + len(gap) for gap in ("\n\n", "\n", " ") if (at := window.rfind(gap)) > CHUNK // 2), CHUNK)
        yield window[:cut]
        start += cut
    yield text[start:]
