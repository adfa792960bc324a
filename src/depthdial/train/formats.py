"""Rows out of the contents of data files: JSON in lines or lists, CSV, Parquet; and what packed files hold."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depthdial.core.extras import need

NAMES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
PACKED = ("", ".gz", ".zst")
SUFFIXES = (*(f"{name}{packed}" for name in NAMES for packed in PACKED), ".parquet")
ACCEPTED = f"{', '.join(NAMES)} (.gz or .zst, too), .parquet"
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
"""What such files begin with, however they are called."""
DEEP = "lists or objects are nested too deeply to be read"
DELIMITERS = ",;\t|"
LONGEST_CELL = 2**30

Place = str
"""Where a row stands: "line 7" of a file, or "row 7"."""
Rows = Iterator[tuple[Place, Any]]
"""Rows with their places; a ValueError in the place of a row that cannot be read."""


def text_of(path: Path) -> str:
    """All of a file, unpacked. Raises ValueError where that is no text, or none at all."""
    raw = path.read_bytes()
    raw = _unzstd(path, raw) if raw.startswith(ZSTD) else raw
    try:
        text = (gzip.decompress(raw) if raw.startswith(GZIP) else raw).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line}: not UTF-8 text; accepted files: {ACCEPTED}") from None
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path}: broken gzip file; copy or download it again") from None
    if not text.strip():
        raise ValueError(f"{path}: empty file; give a file with at least one row of text")
    return text


def name_of(path: Path) -> str:
    """A file's name without what says how it is packed."""
    return re.sub(r"\.(gz|zst)$", "", path.name, flags=re.IGNORECASE)


def rows_of(path: Path) -> Rows:
    """The rows of a file that is no plain text. Raises ValueError for one that cannot be read."""
    with path.open("rb") as file:
        magic = file.read(len(PARQUET))
    kind = Path(name_of(path).lower()).suffix
    if magic == PARQUET or kind == ".parquet":
        return _parquet(path)
    text = text_of(path)
    if kind in (".csv", ".tsv"):
        return _table(path, text, "\t" if kind == ".tsv" else None)
    return _list(path, text) if text.lstrip().startswith("[") else _lines(text)


def _unzstd(path: Path, raw: bytes) -> bytes:
    need("pyarrow", "data", f"the packed file {path}", "unpack it first (zstd -d)")
    import pyarrow as pa

    try:
        return pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read()
    except (pa.ArrowException, OSError):
        raise ValueError(f"{path}: broken zstd file; copy or download it again") from None


def _parquet(path: Path) -> Rows:
    need("pyarrow", "data", f"the Parquet file {path}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020 - it goes on counting
                    yield f"row {number}", row
    except (pa.ArrowException, OSError):
        raise ValueError(f"{path}: broken Parquet file after row {number}; copy or download it again") from None


def _table(path: Path, text: str, delimiter: str | None) -> Rows:
    """Rows of a CSV, cells by the names in its first line; the delimiter is that which stands there most often."""
    csv.field_size_limit(LONGEST_CELL)
    body = text.lstrip()
    blank, head = text[: len(text) - len(body)].count("\n"), body.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(body, newline=""), delimiter=delimiter or max(DELIMITERS, key=head.count))
    try:
        for row in reader:
            cells: Any = {name: _cell(value) for name, value in row.items() if name is not None}
            if None in row:
                cells = ValueError(f"it has more cells than the first line has names ({len(cells)}); quote its texts")
            yield f"line {blank + reader.line_num}", cells
    except csv.Error as error:
        raise ValueError(f"{path} line {blank + reader.line_num}: not CSV ({error}); quote its texts") from None


def _cell(value: str | None) -> Any:
    """A cell: text, or the list of messages that it holds as JSON, or as Python shows it."""
    if value is None or not re.match(r"\[\s*\{.*[\"'](role|from)[\"']", value, re.DOTALL):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def _list(path: Path, text: str) -> Rows:
    try:
        rows = _json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno}: not JSON ({error.msg}); mend the list") from None
    except RecursionError:
        raise ValueError(f"{path}: {DEEP}; give one object a line to see which") from None
    yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))


def _lines(text: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028 inside a string
        if line.strip():
            yield f"line {number}", _row(line.lstrip("\ufeff"))  # files that were joined have marks in the middle


def _row(line: str) -> Any:
    try:
        return _json(line)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON ({error.msg}); give one object a line, one list, or name plain text .txt")
    except RecursionError:
        return ValueError(f"{DEEP}; flatten it, or leave the field out")


def _json(text: str) -> Any:
    """The value. A number of more digits than Python turns into an int (4300) is read as a float."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=float)
