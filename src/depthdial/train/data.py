"""Data files to records: conversations or plain texts with their source. No tokens here (see `encode`, `pack`)."""

import gzip
import hashlib
import json
import logging
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from depthdial.train.shapes import SHAPES, Message, Row, fit

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt", ".txt.gz")
# A plain text file becomes records of about this many characters, so that sampling and splits have some to choose from.
CHUNK = 16_384

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One training document: a conversation (`messages` not empty) or a plain `text`.

    source: the row's `source` field, else the file's name without suffixes; `/split` is added when the row names one.
    ends: False where a plain text goes on in the next record, so that no end-of-document token follows.
    """

    source: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    ends: bool = True

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

    A file named .txt or .txt.gz is plain text; any other must hold JSON objects of one of `SHAPES`, one a line or in a
    list.
    keep, drop: glob patterns on `Record.source` or its last part after `/` ("kilt_*"); a row must match one of `keep`,
    none of `drop`.
    limit: at most this many records, drawn evenly over all files with `seed`.
    Raises ValueError, one line with the remedy: no such file, folder without data files, empty file, not JSON, a row of
    no known shape, no text in any row, every row filtered out.
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


def files_of(files: Sequence[str | Path]) -> list[Path]:
    """The data files that are meant, those of folders by name. Raises ValueError for what is not there."""
    if not files:
        raise ValueError(f"no data files given; name at least one ({', '.join(SUFFIXES)})")
    paths: list[Path] = []
    for path in map(Path, files):
        inside = sorted(p for p in path.glob("*") if p.name.endswith(SUFFIXES) and p.is_file())
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
    """The records of one file; rows without text are left out, with a note in the log."""
    text = _text(path)
    if not text.strip():
        raise ValueError(f"{path}: empty file; give a file with at least one row of text")
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    if path.name.removesuffix(".gz").endswith(".txt"):
        chunks = list(_chunks(text))
        return [Record(stem, text=c, ends=i == len(chunks)) for i, c in enumerate(chunks, 1)]
    rows = list(_rows(path, text))
    records = [r for r in (_record(row, stem, f"{path} {where}") for where, row in rows) if r is not None]
    if not records:
        raise ValueError(f"{path}: no text in any row; a conversation needs an assistant message, a text some words")
    if len(records) < len(rows):
        log.warning("%s: %d of %d rows left out: no text in them", path, len(rows) - len(records), len(rows))
    return records


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; accepted files: {', '.join(SUFFIXES)}") from None
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path}: broken gzip file; copy or download it again") from None


def _rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """JSON values with where they stand ("line 7", or "row 7" of a list)."""
    try:
        if text.lstrip().startswith("["):
            yield from ((f"row {i}", row) for i, row in enumerate(json.loads(text), 1))
            return
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno}: not JSON ({error.msg}); mend the list") from None
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028 inside a string
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                remedy = "give one object a line, one list, or name plain text .txt"
                raise ValueError(f"{path} line {number}: not JSON ({error.msg}); {remedy}") from None


def _record(row: object, stem: str, where: str) -> Record | None:
    content = fit(row) if isinstance(row, dict) else None
    if content is None or not isinstance(row, dict):
        has = f"fields {', '.join(map(str, row))[:200]}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise ValueError(f"{where}: no known row shape fits ({has}); accepted: {'; '.join(s.fields for s in SHAPES)}")
    source = _source(row, stem)
    if isinstance(content, str):
        text = content.replace("\r\n", "\n")
        return Record(source, text=text) if text.strip() else None
    messages = _tidy(content)
    return Record(source, messages=messages) if messages else None


def _source(row: Row, stem: str) -> str:
    names = [row.get("source") or stem, row.get("split")]
    return "/".join(str(n) for n in names if isinstance(n, str) and n)


def _tidy(messages: list[Message]) -> tuple[Message, ...]:
    """Stripped messages up to the last answer before the first empty one (an empty system message is only dropped)."""
    kept: list[Message] = []
    for message in messages:
        content = message["content"].replace("\r\n", "\n").strip()
        if not content and message["role"] != "system":
            break
        if content:
            kept.append({"role": message["role"], "content": content})
    while kept and kept[-1]["role"] != "assistant":
        kept.pop()
    return tuple(kept)


def _chunks(text: str) -> Iterator[str]:
    """Cut at the last paragraph, line or word end before `CHUNK` characters; the pieces join to `text` exactly."""
    start = 0
    while len(text) - start > CHUNK:
        window = text[start : start + CHUNK]
        cut = next((at + len(gap) for gap in ("\n\n", "\n", " ") if (at := window.rfind(gap)) > CHUNK // 2), CHUNK)
        yield window[:cut]
        start += cut
    yield text[start:]
