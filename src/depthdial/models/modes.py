"""Who may read what is written: as the umask says, like any other file.

Temporary files and folders are made for their owner alone, and safetensors writes through one: renamed into place, a
model could not be read by a server under another user.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

_LOCK = threading.Lock()


def umask() -> int:
    """The process's umask. It can only be read by setting it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():  # without touching it: threads share it
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    with _LOCK:
        found = os.umask(0o077)
        os.umask(found)
    return found


def readable(path: Path) -> None:
    """Give a file, or a folder and all in it, the mode that `open` and `mkdir` would have given."""
    mask = umask()
    for place in (path, *path.rglob("*")) if path.is_dir() else (path,):
        place.chmod((0o777 if place.is_dir() else 0o666) & ~mask)
