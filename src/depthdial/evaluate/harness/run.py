"""An evaluation: every row runs every task, what is done is kept, and the table is made of what is there."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval

from depthdial.core.lock import locked
from depthdial.core.whole import disk_errors, plain, write_json
from depthdial.evaluate.folder import FORMAT, RESULTS, Folder, check
from depthdial.evaluate.harness import sandbox
from depthdial.evaluate.harness.compare import summary
from depthdial.evaluate.harness.data import DataFolder
from depthdial.evaluate.harness.items import Record, measure
from depthdial.evaluate.harness.lm import DepthLM
from depthdial.evaluate.harness.setting import Dial, Setting
from depthdial.evaluate.harness.tasks import Suite, load_suites
from depthdial.evaluate.speed.machine import facts
from depthdial.evaluate.subjects import INT8, Lineup, Row, Setup, Subject, identity
from depthdial.models.fingerprint import fingerprint

Report = Callable[[str, int, int], None]
"""What runs now, chunks done, chunks in all."""


@dataclass(frozen=True)
class Options:
    """An evaluation."""

    model: str
    lineup: Lineup
    tasks: Sequence[str]
    limit: float | None = None
    """Items of each task, the first ones; below 1 it is the share of them."""
    fewshot: int | None = None
    data_dir: Path | None = None
    output: Path | None = None
    resume: bool = False
    run_code: bool = False
    setup: Setup = field(default_factory=lambda: Setup(""))

    def __post_init__(self):
        limit = self.limit
        if limit is not None and not (0 < limit < 1 or (limit >= 1 and float(limit).is_integer())):
            raise ValueError(f"--limit must be at least 1 item, or a share of them below 1, not {limit:g}")
        if self.fewshot is not None and self.fewshot < 0:
            raise ValueError(f"--fewshot must be at least 0, not {self.fewshot}")
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output: the folder of the run that is to go on")
        self.lineup.check(self.setup)


def run(options: Options, report: Report = lambda name, done, total: None) -> dict[str, Any]:
    """Measure all rows; gives what results.json holds. Raises ValueError, one line, for everything a user can mend."""
    if options.output is None:
        return _run(options, report)
    check(options.output, options.resume)
    with locked(options.output), disk_errors(lambda: "free some space and repeat the command with --resume"):
        return _run(options, report)


def _run(options: Options, report: Report) -> dict[str, Any]:
    data = None if options.data_dir is None else DataFolder(options.data_dir, _first(options.limit))
    lineup = options.lineup
    baselines = {name: identity(path) for name, path in lineup.baselines.items()}
    report("tasks", 0, 0)
    with redirect_stdout(sys.stderr):
        suites = load_suites(options.tasks, data, options.fewshot, options.run_code)
        for suite in suites:
            suite.check(options.limit)
    if options.run_code:
        sandbox.check()
    folder: Folder | None = None
    rows: list[Row] = []
    records: dict[str, dict[str, Record]] = {}
    results: dict[str, Any] = {}
    for name, make in zip([None, *lineup.others], lineup.subjects(options.setup), strict=True):
        report("loading" if name is None else f"loading {name}", 0, 0)
        if folder is not None and name is not None and _done(folder, lineup.others[name], rows, suites, records):
            continue
        try:
            subject = make()
        except ValueError as error:
            if name != INT8:
                raise
            results["missing"] = {"base int8": str(error)}  # a device, or a model, without such kernels
            continue
        if folder is None:
            folder = Folder(options.output, _identity(options, subject, baselines, suites), options.resume)
            results = _about(options, subject, suites)
            if subject.name in lineup.baselines:
                raise ValueError(f"--plugin {subject.name}=...: the plug-in itself has this name; choose another")
            results["subjects"] = dict(folder.subjects)  # what this run does not load, it must not forget
        results["subjects"][subject.name] = subject.about
        lm = DepthLM(subject.llm)
        for row in subject.rows:
            rows.append(row)
            for suite in suites:
                _measure(lm, subject, row, suite, folder, records, options, report)
            _write(results, rows, records, folder, complete=False)
        del subject, lm
    assert folder is not None
    return _write(results, rows, records, folder, complete=True)


def _first(limit: float | None) -> int | None:
    """Rows of a file that a run can need; all of them where it needs a share."""
    return None if limit is None or limit < 1 else int(limit)


def _measure(
    lm: DepthLM,
    subject: Subject,
    row: Row,
    suite: Suite,
    folder: Folder,
    records: dict[str, dict[str, Record]],
    options: Options,
    report: Report,
) -> None:
    name = f"{row.name}, {suite.name}"
    kept = folder.get(row, suite.name)
    record = None if kept is None else Record.from_json(kept)
    if record is None:
        lm.report = lambda done, total: report(name, done, total)
        target = row.budget if row.kind not in ("baseline", "where") else _target(row, suite.name, records)
        store = folder.store(row, suite.name)
        with redirect_stdout(sys.stderr):
            setting = _setting(subject, row, target, options.setup)
            record = measure(suite, lm, setting, store, options.limit, options.run_code)
        folder.put(row, suite.name, record.to_json())
    records.setdefault(row.name, {})[suite.name] = record


def _target(row: Row, task: str, records: Mapping[str, Mapping[str, Record]]) -> float:
    """The cost that a row is to meet: what the plug-in had on the task in what was written; where no written token ran,
    its budget."""
    adaptive = next(name for name in records if name.endswith(f" {row.budget:g}"))
    cost = records[adaptive][task].cost
    return row.budget if math.isnan(cost) else cost


def _setting(subject: Subject, row: Row, target: float, setup: Setup) -> Setting:
    if row.part:
        written = 1.0 if row.part == "prompt" else row.budget
        return Setting.alike(Dial.of(subject.llm, written, subject.read_at(target)))
    return Setting.of(subject, subject.knob(row, target), setup.prompt_budget_of(row))


def _done(
    folder: Folder, own: Sequence[Row], rows: list[Row], suites: Sequence[Suite], records: dict[str, dict[str, Record]]
) -> bool:
    """Take the records of a subject's rows if all are there, so that it need not be loaded."""
    found = {(row.name, suite.name): folder.get(row, suite.name) for row in own for suite in suites}
    if any(record is None for record in found.values()):
        return False
    rows += own
    for (row, task), record in found.items():
        assert record is not None
        records.setdefault(row, {})[task] = Record.from_json(record)
    return True


def _identity(options: Options, subject: Subject, baselines: dict[str, str], suites: Sequence[Suite]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "fixed": {
            "what": "tasks",
            "model": fingerprint(subject.llm.model).weights,
            "plugin": options.lineup.identity(subject.llm, options.model),
            "prompt_budget": options.setup.read_by(subject.llm),
            "dtype": options.setup.dtype,
            "limit": options.limit,
            "harness": lm_eval.__version__,
        },
        "tasks": {suite.name: suite.digest(options.limit) for suite in suites},
        "baselines": baselines,
    }


def _about(options: Options, subject: Subject, suites: Sequence[Suite]) -> dict[str, Any]:
    found = facts(subject.llm.model.device)
    return {
        "what": "quality on tasks of lm-evaluation-harness against true cost",
        "complete": False,
        **found,
        "versions": {**found["versions"], "lm_eval": lm_eval.__version__},
        "model": Path(options.model).name,
        "arguments": {
            "tasks": list(options.tasks),
            "budgets": list(options.lineup.budgets),
            "limit": options.limit,
            "fewshot": {s.name: next(iter(s.parts.values())).get_config("num_fewshot") for s in suites},
            "prompt_budget": options.setup.read_by(subject.llm),
            "dtype": options.setup.dtype,
            "baselines": list(options.lineup.baselines),
        },
        "layers": subject.llm.layers,
        "subjects": {},
        "rows": [],
    }


def _write(
    results: dict[str, Any],
    rows: Sequence[Row],
    records: Mapping[str, Mapping[str, Record]],
    folder: Folder,
    complete: bool,
) -> dict[str, Any]:
    results["rows"] = summary(rows, records)
    results["complete"] = complete
    if folder.path is not None:
        write_json(folder.path / RESULTS, results)
    return plain(results)
