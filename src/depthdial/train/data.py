"""Data files to records: conversations or plain texts with their source. No tokens here (see `encode`, `pack`)."""

import gzip
import hashlib
import json
import logging
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from depthdial.train.messages import LeftOut, Message, shown
from depthdial.train.shapes import SHAPES, JsonRow, fit

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt", ".txt.gz")
# A plain text file becomes records of about this many characters, so that sampling and splits have some to choose from.
CHUNK = 16_384
NO_TEXT = "without text"
DEEP = "lists or objects are nested too deeply to be read"

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
        asked = next((m["content"] for m in self.messages if m["role"] == "user"), None)
        return " ".join((asked if asked is not None else self.text or str(self.messages)).lower().split())


def read(
    files: str | Path | Sequence[str | Path],
    *,
    keep: Sequence[str] = ("*",),
    drop: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> list[Record]:
    """Read files (or the data files of folders, by name) into records, in file order.

    A file named .txt or .txt.gz, in any case, is plain text; any other must hold JSON objects of one of `SHAPES`, one a
    line or in a list. The log names, once a file, the fields that nothing is made of.
    keep, drop: glob patterns on `Record.source` or its last part after `/` ("kilt_*"); a row must match one of `keep`,
    none of `drop`.
    limit: at most this many records, drawn evenly over all files with `seed`.
    Raises ValueError, one line with the remedy: no such file, folder without data files, empty file, not JSON, a row of
    no known shape or with a field that cannot be read, no text in any row, every row filtered out.
    """
    paths = files_of([files] if isinstance(files, str | Path) else files)
    found = [(path, record) for path in paths for record in _records(path)]
    records = [r for _, r in found if _matches(r.source, keep) and not _matches(r.source, drop)]
    if not records:
        seen = ", ".join(sorted({r.source for _, r in found})[:12])
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
    found = hashlib.blake2b(digest_size=16)
    for record in records:
        told = json.dumps([record.messages, record.text, record.ends, record.context])  # half characters are escaped
        found.update(told.encode() + b"\0")
    return found.hexdigest()


def files_of(files: Sequence[str | Path]) -> list[Path]:
    """The data files that are meant, those of folders by name. Raises ValueError for what is not there."""
    if not files:
        raise ValueError(f"no data files given; name at least one ({', '.join(SUFFIXES)})")
    paths: list[Path] = []
    for path in map(Path, files):
        inside = sorted(p for p in path.glob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file())
        if not path.exists():
            raise ValueError(f"{path}: no such data file; check the path")
        if path.is_dir() and not inside:
            raise ValueError(f"{path}: folder without data files; put {', '.join(SUFFIXES)} files in it or name a file")
        paths += inside if path.is_dir() else [path]
    return paths


def _matches(source: str, patterns: Sequence[str]) -> bool:
    last = source.rpartition("/")[2]
    return any(fnmatchcase(source, p) or fnmatchcase(last, p) for p in patterns)


def _records(path: Path) -> list[Record]:
    """The records of one file; the log names rows that are left out, and fields that are not used."""
    text = _text(path)
    if not text.strip():
        raise ValueError(f"{path}: empty file; give a file with at least one row of text")
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem = name.rpartition(".")[0] or path.name
    if name.lower().endswith(".txt"):
        chunks = list(_chunks(text))
        return [Record(stem, text=c, ends=i == len(chunks), where=str(path)) for i, c in enumerate(chunks, 1)]
    records, rows, reasons, unused = [], 0, dict[str, list[str]](), dict[str, str]()
    for where, row in _rows(path, text):
        rows += 1
        try:
            record, names = _record(row, stem, f"{path} {where}")
        except LeftOut as reason:
            reasons.setdefault(str(reason), []).append(where)
            continue
        records.append(record)
        for name in sorted(names):
            unused.setdefault(name, where)
    left = ", ".join(f"{len(places)} {reason} (first in {places[0]})" for reason, places in reasons.items())
    if not records and set(reasons) == {NO_TEXT}:
        raise ValueError(f"{path}: no text in any row; a conversation needs an assistant message, a text some words")
    if not records:
        raise ValueError(f"{path}: every row is left out: {left}; give rows with text to learn")
    if left:
        log.warning("%s: %d of %d rows left out: %s", path, rows - len(records), rows, left)
    if unused:
        names = ", ".join(f"{shown(name)} (first in {where})" for name, where in unused.items())
        log.warning("%s: fields not used: %s", path, names)
    return records


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line}: not UTF-8 text; accepted files: {', '.join(SUFFIXES)}") from None
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path}: broken gzip file; copy or download it again") from None


def _rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """JSON values with where they stand ("line 7", or "row 7" of a list)."""
    if text.lstrip().startswith("["):
        try:
            rows = _json(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {error.lineno}: not JSON ({error.msg}); mend the list") from None
        except RecursionError:
            raise ValueError(f"{path}: {DEEP}; give one object a line to see which") from None
        yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028 inside a string
        if line.strip():
            try:
                yield f"line {number}", _json(line.lstrip("\ufeff"))  # files that were joined have marks in the middle
            except json.JSONDecodeError as error:
                remedy = "give one object a line, one list, or name plain text .txt"
                raise ValueError(f"{path} line {number}: not JSON ({error.msg}); {remedy}") from None
            except RecursionError:
                raise ValueError(f"{path} line {number}: {DEEP}; flatten it, or leave the field out") from None


def _json(text: str) -> Any:
    """The value. A number of more digits than Python turns into an int (4300) is read as a float."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=float)


def _record(row: object, stem: str, where: str) -> tuple[Record, frozenset[str]]:
    """The record, and the fields that it does not use. Raises ValueError, naming `where`, for a row that breaks the
    file; LeftOut for one that is not learnt from."""
    try:
        found = fit(row) if isinstance(row, dict) else None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if found is None or not isinstance(row, dict):
        has = f"fields {', '.join(map(shown, row))[:200]}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise ValueError(f"{where}: no known row shape fits ({has}); accepted: {'; '.join(s.fields for s in SHAPES)}")
    source, content = _source(row, stem), found.content
    if isinstance(content, str):
        text = content.replace("\r\n", "\n")
        record, unused = Record(source, text=text, where=where), found.unused
    else:
        talk = content.tidy()
        record = Record(source, tuple(talk.messages), where=where, context=tuple(sorted(talk.context)))
        unused = found.unused | talk.unused
    if not record.messages and not record.text.strip():
        raise LeftOut(NO_TEXT)
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
