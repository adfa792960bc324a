"""Checkpoints of the Trainer as folders: sealed once they are on the disk, and checked before a run goes on from one.

A seal is a list of the checkpoint's files with their sizes and sha256. A checkpoint without one was not written to its
end, or by a depthdial that did not seal yet: such a one counts where nothing in the folder is sealed, if its files can
be read to their ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

from depthdial.core.whole import sync, write_json
from depthdial.train import processes

STATE_FILE = "trainer_state.json"  # the last file that the Trainer writes into a checkpoint
SEAL_FILE = "seal.json"
_NAME = re.compile(r"checkpoint-\d+")

log = logging.getLogger(__name__)


def seal(checkpoint: Path) -> None:
    """Bring a checkpoint onto the disk, and say what is in it. Raises OSError when the disk refuses."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != SEAL_FILE]
    for path in files:
        sync(path)
    contents = {str(path.relative_to(checkpoint)): [path.stat().st_size, _sha256(path)] for path in files}
    write_json(checkpoint / SEAL_FILE, {"files": contents})
    sync(checkpoint.parent)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in some words; None if nothing is."""
    if not (checkpoint / SEAL_FILE).is_file():
        return _unreadable(checkpoint)
    try:
        files = json.loads((checkpoint / SEAL_FILE).read_text())["files"].items()
        for name, (size, digest) in files:
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} of {size} bytes"
            if _sha256(path) != digest:
                return f"{name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL_FILE} cannot be read"
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole."""
    return next((path for path in reversed(finished_checkpoints(folder)) if damage(path) is None), None)


def finished_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first, whatever befell them later."""
    checkpoints = sorted((path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=step_of)
    sealed = [path for path in checkpoints if (path / SEAL_FILE).is_file()]
    return sealed or [path for path in checkpoints if _json(path / STATE_FILE)]


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def to_resume(folder: Path, resume: bool) -> Path | None:
    """The newest whole checkpoint, to go on from, and away with damaged ones after it; None for a fresh start.

    Raises ValueError when there is nothing to resume.
    """
    if not resume:
        return None
    there = finished_checkpoints(folder)
    newest = last_checkpoint(folder)
    processes.wait()  # nobody removes before everybody has looked
    if newest is None:
        if there:
            raise ValueError(
                f"every checkpoint in {folder} is damaged (in {there[-1].name} {damage(there[-1])}); remove that "
                "folder, and start without --resume"
            )
        raise ValueError(f"nothing to resume: {folder} holds no complete checkpoint; start without --resume")
    if processes.is_main():
        for path in there[there.index(newest) + 1 :]:
            log.warning("%s is damaged (%s); going on from the older %s", path, damage(path), newest.name)
            shutil.rmtree(path, ignore_errors=True)
        sweep(folder)
    return newest


def sweep(folder: Path) -> None:
    """Remove checkpoints that an interruption or a full disk left half-written."""
    whole = finished_checkpoints(folder)
    for path in folder.glob("checkpoint-*"):
        if _NAME.fullmatch(path.name) and path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


def _unreadable(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that has no seal: all formats in it know their length, torch's sums as well."""
    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".json":
                whole = _json(path)
            elif path.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(path) as archive:
                    whole = archive.testzip() is None
            elif path.suffix == ".safetensors":
                with path.open("rb") as file:
                    size = int.from_bytes(file.read(8), "little")
                    header = json.loads(file.read(min(size, path.stat().st_size)))
                ends = [8 + size, *(8 + size + t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")]
                whole = path.stat().st_size == max(ends)
            else:
                continue
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            whole = False
        if not whole:
            return f"{path.name} is cut off"
    return None
