"""The output folder of an evaluation: what run it is, every task at every setting, and the results made of them.

A folder belongs to one run: one model, one plug-in, one number of items. To the same run tasks, budgets and baselines
can be added later. What is kept of a task is a record of the caller's, as JSON has it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from depthdial.core.lock import foreign
from depthdial.core.whole import write_json
from depthdial.evaluate.store import Store
from depthdial.evaluate.subjects import TableRow

RUN, RESULTS = "run.json", "results.json"
FORMAT = 2


class RunFolder:
    """path: None keeps nothing. identity: plain values that say which run it is, `fixed` ones and the growing tables
    `tasks` and `baselines` (name -> hash).

    Raises ValueError where the folder holds another run, or this one and `resume` is not asked for.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any], resume: bool):
        self.path = path
        self.subjects: dict[str, Any] = {}
        """What the results that were there tell of each subject."""
        if path is None:
            return
        check_folder(path, resume)
        file = path / RUN
        if file.is_file():
            identity = _extend(_read(file), identity, path)
        results = path / RESULTS
        self.subjects = _read(results).get("subjects", {}) if results.is_file() else {}
        path.mkdir(parents=True, exist_ok=True)
        write_json(file, identity)

    def store(self, row: TableRow, task: str) -> Store:
        """The chunks of a task at a setting."""
        return Store(None if self.path is None else self.path / "chunks" / f"{row.file}--{task}.jsonl")

    def get(self, row: TableRow, task: str) -> dict[str, Any] | None:
        """A finished task; None if it is not there."""
        file = self._record(row, task)
        return None if file is None or not file.is_file() else _read(file)

    def put(self, row: TableRow, task: str, record: dict[str, Any]) -> None:
        file = self._record(row, task)
        if file is not None:
            write_json(file, record)

    def _record(self, row: TableRow, task: str) -> Path | None:
        return None if self.path is None else self.path / "records" / f"{row.file}--{task}.json"


def check_folder(path: Path, resume: bool) -> None:
    """ValueError where no run may begin in the folder `path`, or go on if `resume`, as far as can be seen from it."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {path} is a file; give a folder")
    if (path / RUN).is_file():
        if not resume:
            raise ValueError(f"{path} holds a run already; pass --resume to go on with it, or choose another --output")
    elif foreign(path, ()):  # hidden files are what killed processes leave, and the lock
        raise ValueError(f"{path} is not empty and holds no evaluation; choose another --output")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); remove it and go on with --resume") from error


def _extend(before: dict[str, Any], now: dict[str, Any], path: Path) -> dict[str, Any]:
    """The identity of a run that goes on. ValueError where it is another one."""
    if before.get("format") != now["format"]:
        raise ValueError(f"{path} was written by another version of depthdial; choose another --output")
    for name, value in now["fixed"].items():
        if before["fixed"].get(name) != value:
            raise ValueError(
                f"{path} holds another run: its {name} is {before['fixed'].get(name)!r}, not {value!r}; "
                "choose another --output"
            )
    for table in ("tasks", "baselines"):
        for name, digest in now[table].items():
            if before[table].get(name, digest) != digest:
                raise ValueError(f"{path} holds another run: other contents of {name!r}; choose another --output")
    return {**now, **{table: {**before[table], **now[table]} for table in ("tasks", "baselines")}}
