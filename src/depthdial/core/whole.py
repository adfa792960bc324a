"""Files that are written whole or not at all: a killed process or a full disk leaves what was there before."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PART = re.compile(r"\.(.+)-[0-9a-f]{8}\.part(\..*)?")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end of the block; if the block fails it is gone.

    Makes the folder, and gives the file the mode that the umask gives new files, whatever its writer did. Two processes
    that write one path do not disturb each other: the later one is kept. Raises OSError where the folder cannot be
    written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # with the ending that `path` has, which some writers look at
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        mode = _new(part)
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def open_to_all(folder: Path) -> None:
    """Give the files of a folder the mode that the umask gives new files: some libraries write for their user alone."""
    probe = folder / f".{secrets.token_hex(4)}.part"
    mode = _new(probe)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def _new(path: Path) -> int:
    """Make an empty file; its mode."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return stat.S_IMODE(path.stat().st_mode)


def leftovers(folder: Path) -> list[tuple[Path, Path]]:
    """What killed processes left in a folder: pairs of a half-written file and the path that it was to take. A process
    that is still writing has such a file, too: remove only what nobody else writes."""
    found = ((file, _PART.fullmatch(file.name)) for file in sorted(folder.glob(".*.part*")))
    return [(file, folder / (told[1] + (told[2] or ""))) for file, told in found if told]


def write_text(path: Path, text: str) -> None:
    """UTF-8."""
    with whole(path) as part:
        part.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """As `plain` has it, indented."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """As JSON has it: lists, string keys, and null for a number that is not one."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
