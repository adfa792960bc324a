"""What requests gave, kept on disk chunk by chunk, so that a run that was ended goes on where it was.

A chunk is what the engine was given at one time; what it gives depends on the chunk alone. So a resumed run gives what
an uninterrupted one does, to the last bit. One line of JSON per chunk; a line that was cut off counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Results = list[Any]
Seconds = list[float]
"""By the clock on the wall, and of the processor."""


def key_of(*facts: object) -> str:
    """The name of a chunk: a hash of everything that its results depend on."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class Store:
    """Chunks by key. path: a `.jsonl` file, made when the first chunk is kept; None keeps nothing."""

    def __init__(self, path: Path | None = None):
        self._path = path
        self._chunks: dict[str, tuple[Results, Seconds]] = {}
        if path is not None and path.is_file():
            self._read(path)

    def get(self, key: str, make: Callable[[], Results]) -> tuple[Results, Seconds]:
        """The results of a chunk and the seconds they took; made and kept if they are not there."""
        if key not in self._chunks:
            start = time.perf_counter(), time.process_time()
            results = make()
            seconds = [time.perf_counter() - start[0], time.process_time() - start[1]]
            line = json.dumps({"key": key, "seconds": seconds, "results": results})
            self._chunks[key] = json.loads(line)["results"], seconds  # what a resumed run would read
            self._keep(line)
        return self._chunks[key]

    def _keep(self, line: str) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            entry = json.loads(line)
            self._chunks[entry["key"]] = entry["results"], entry["seconds"]
        if len(whole) < len(data):
            with path.open("r+b") as file:  # the next line must begin a line
                file.truncate(len(whole))
