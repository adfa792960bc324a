"""An evaluation: every row runs every task, what is done is kept, and the table is made of what is there."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.core.lock import locked
from depthdial.core.whole import disk_errors, plain, write_json
from depthdial.evaluate.folder import FORMAT, RESULTS, RunFolder, check_folder
from depthdial.evaluate.speed.machine import facts
from depthdial.evaluate.store import Store
from depthdial.evaluate.subjects import INT8, Lineup, Setup, Subject, TableRow, identity
from depthdial.models.fingerprint import fingerprint

Report = Callable[[str, int, int], None]
"""What runs now, chunks done, chunks in all."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What both kinds of evaluation are asked. ValueError for what does not fit together."""

    model: str
    lineup: Lineup
    setup: Setup
    limit: float | None = None
    """Items of each task, the first ones; below 1 it is the share of them."""
    output: Path | None = None
    resume: bool = False

    def __post_init__(self):
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output: the folder of the run that is to go on")
        self.lineup.check(self.setup)


class Evaluation(ABC):
    """One run, row by row. what: it measures, in words. A record is what is kept of a task at a setting: it has a
    `to_json`."""

    what: str

    def __init__(self, options: Any, report: Report):
        self.options, self.report = options, report
        self.rows: list[TableRow] = []
        self.records: dict[str, dict[str, Any]] = {}
        """By row's name, then by task."""

    @abstractmethod
    def tasks(self) -> Mapping[str, str]:
        """Names, and hashes of all that a record depends on beside the row."""

    @abstractmethod
    def ready(self, first: Subject) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        """Once the plug-in is loaded: what else tells this run from another, its arguments, versions of libraries."""

    @abstractmethod
    def measure(self, subject: Subject, row: TableRow, task: str, store: Store) -> Any:
        """One task at one setting. store: its chunks."""

    @abstractmethod
    def record(self, data: dict[str, Any]) -> Any:
        """One that was kept."""

    @abstractmethod
    def summary(self) -> list[dict[str, Any]]:
        """The rows of the table."""

    def run(self) -> dict[str, Any]:
        """Measure all rows; gives what results.json holds. Raises ValueError, one line, for what a user can mend."""
        options = self.options
        if options.output is None:
            return self._run()
        check_folder(options.output, options.resume)
        with locked(options.output), disk_errors(lambda: "free some space and repeat the command with --resume"):
            return self._run()

    def _run(self) -> dict[str, Any]:
        options, lineup = self.options, self.options.lineup
        baselines = {name: identity(path) for name, path in lineup.baselines.items()}
        tasks, subjects = self.tasks(), lineup.subjects(options.setup)
        first = self._load("", next(subjects))
        if first.name in lineup.baselines:
            raise ValueError(f"--plugin {first.name}=...: the plug-in itself has this name; choose another")
        constants, arguments, versions = self.ready(first)
        constants |= {
            "model": fingerprint(first.llm.model).weights,
            "plugin": lineup.identity(first.llm, options.model),
            "prompt_budget": options.setup.read_by(first.llm),
            "dtype": options.setup.dtype,
            "limit": options.limit,
        }
        own = {"format": FORMAT, "fixed": constants, "tasks": dict(tasks), "baselines": baselines}
        folder, here = RunFolder(options.output, own, options.resume), facts(first.llm.model.device)
        results: dict[str, Any] = {
            "what": self.what,
            "complete": False,
            **here,
            "versions": here["versions"] | versions,
            "model": Path(options.model).name,
            "layers": first.llm.layers,
            "arguments": {
                "budgets": list(lineup.budgets),
                "limit": options.limit,
                "prompt_budget": options.setup.read_by(first.llm),
                "dtype": options.setup.dtype,
                "baselines": list(lineup.baselines),
                **arguments,
            },
            "subjects": dict(folder.subjects),  # what this run does not load, it must not forget
        }
        self._subject(first, list(tasks), folder, results)
        del first
        for (name, rows), make in zip(lineup.others.items(), subjects, strict=True):
            if not self._take_stored(rows, list(tasks), folder):
                try:
                    self._subject(self._load(name, make), list(tasks), folder, results)
                except ValueError as error:
                    if name != INT8:
                        raise
                    results["missing"] = {"base int8": str(error)}  # a device, or a model, without such kernels
        return self._write(results, folder, complete=True)

    def _load(self, name: str, make: Callable[[], Subject]) -> Subject:
        self.report(f"loading {name}".strip(), 0, 0)
        with redirect_stdout(sys.stderr):
            return make()

    def _take_stored(self, rows: Sequence[TableRow], tasks: Sequence[str], folder: RunFolder) -> bool:
        """Take the records of a subject's rows if all are there, so that it need not be loaded."""
        stored = {(row.name, task): folder.get(row, task) for row in rows for task in tasks}
        if not rows or any(data is None for data in stored.values()):
            return False
        self.rows += rows
        for (row, task), data in stored.items():
            self.records.setdefault(row, {})[task] = self.record(data or {})
        return True

    def _subject(self, subject: Subject, tasks: Sequence[str], folder: RunFolder, results: dict[str, Any]) -> None:
        results["subjects"][subject.name] = subject.about
        for row in subject.rows:
            self.rows.append(row)
            for task in tasks:
                data = folder.get(row, task)
                with redirect_stdout(sys.stderr):
                    stored = None if data is None else self.record(data)
                    record = stored or self.measure(subject, row, task, folder.store(row, task))
                if stored is None:
                    folder.put(row, task, record.to_json())
                self.records.setdefault(row.name, {})[task] = record
            self._write(results, folder, complete=False)

    def _write(self, results: dict[str, Any], folder: RunFolder, complete: bool) -> dict[str, Any]:
        results |= {"rows": self.summary(), "complete": complete}
        if folder.path is not None:
            write_json(folder.path / RESULTS, results)
        return plain(results)
