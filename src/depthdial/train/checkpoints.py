"""Checkpoints of the Trainer as folders: the newest whole one, and away with what was left half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

STATE_FILE = "trainer_state.json"  # the last file that the Trainer writes into a checkpoint


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [path for path in folder.glob("checkpoint-*") if _whole(path)]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def to_resume(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; None for a fresh start. ValueError when there is nothing to resume."""
    found = last_checkpoint(folder) if resume else None
    if resume and found is None:
        raise ValueError(f"nothing to resume: {folder} holds no complete checkpoint; start without --resume")
    return found


def sweep(folder: Path) -> None:
    """Remove checkpoints that an interruption or a full disk left half-written."""
    for path in folder.glob("checkpoint-*"):
        if not _whole(path):
            shutil.rmtree(path, ignore_errors=True)


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True
