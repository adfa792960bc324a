"""Files that are written whole or not at all: a killed process or a full disk leaves what was there before."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_SYSTEM = re.compile(r"\(os error (\d+)\)")  # as Rust has it: safetensors, tokenizers
_TORCH = re.compile(r"PytorchStreamWriter failed|inline_container\.cc")
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
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _new(path: Path) -> int:
    """Make an empty file; its mode."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return stat.S_IMODE(path.stat().st_mode)


def sync(path: Path) -> None:
    """A file, or the names in a folder, onto the disk: a name must not outlive its bytes when the machine stops."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def disk_errors(remedy: Callable[[], str]) -> Iterator[None]:
    """OSError, in one line with what to do, where the disk refuses to take more. The writers of other libraries have
    error types of their own for it, and the number of the system's error stands in their text, if anywhere.

    remedy: asked when it is needed.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            number = error.errno if error.errno in _REFUSED else None
        else:
            known = _SYSTEM.search(str(error))
            number = int(known[1]) if known else (errno.EIO if _TORCH.search(str(error)) else None)
        if number is None:
            raise
        said = "the disk is full or refuses" if number == errno.EIO else os.strerror(number)
        place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise OSError(f"{said}{place}; {remedy()}") from error


def leftovers(folder: Path) -> list[tuple[Path, Path]]:
    """What killed processes left in a folder: pairs of a half-written file and the path that it was to take. A process
    that is still writing has such a file, too: remove only what nobody else writes."""
    found = ((file, _PART.fullmatch(file.name)) for file in sorted(folder.glob(".*.part*")))
    return [(file, folder / (told[1] + (told[2] or ""))) for file, told in found if told]


def write_text(path: Path, text: str) -> None:
    """UTF-8."""
    with whole(path) as part:
        part.write_text(text, "utf-8")


def write_new(path: Path, text: str) -> bool:
    """UTF-8; False, and nothing is changed, where `path` is there already: of several processes one is the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        part.write_text(text, "utf-8")
        sync(part)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return True


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
