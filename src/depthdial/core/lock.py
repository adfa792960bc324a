"""Folders that one run writes at a time, and never over what is not its own."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made, for the length of the block; a killed process holds it no longer.

    Raises ValueError at once where another process, or another run of this one, holds it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder} is in use: another run writes to it; wait until that has ended, or choose another --output"
        ) from None
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)  # while it is held: who comes next makes a file of its own
        lock.release()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # a run that was refused leaves nothing


def foreign(folder: Path, own: Collection[str]) -> list[str]:
    """Names in `folder` that are not among `own`, hidden ones left out: nobody writes over those."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name not in own and not path.name.startswith("."))


def check_replaceable(path: Path, mark: str, *beside: Path) -> None:
    """ValueError unless `path` is free, or a file that holds the text `mark`, by which a verb knows what it wrote
    itself; where it is free, the files that are written beside it must be free, too."""
    if path.is_file() and mark in path.read_text("utf-8", errors="replace"):
        return
    if there := [file for file in (path, *beside) if file.exists()]:
        raise ValueError(f"{there[0]} exists, and this command did not write it; choose another --output")
