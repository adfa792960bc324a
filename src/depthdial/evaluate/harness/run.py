"""An evaluation on tasks of lm-evaluation-harness."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval

from depthdial.evaluate import evaluation
from depthdial.evaluate.equal_cost import meet_cost
from depthdial.evaluate.evaluation import Report
from depthdial.evaluate.harness import sandbox
from depthdial.evaluate.harness.compare import summary
from depthdial.evaluate.harness.data import DataFolder
from depthdial.evaluate.harness.items import TaskRecord, measure_task
from depthdial.evaluate.harness.lm import DepthLM
from depthdial.evaluate.harness.setting import Setting, TaskDials
from depthdial.evaluate.harness.tasks import load_suites
from depthdial.evaluate.store import Store
from depthdial.evaluate.subjects import Subject, TableRow


@dataclass(frozen=True, kw_only=True)
class TaskOptions(evaluation.EvaluationOptions):
    """An evaluation."""

    tasks: Sequence[str]
    fewshot: int | None = None
    data_dir: Path | None = None
    run_code: bool = False

    def __post_init__(self):
        limit = self.limit
        if limit is not None and not (0 < limit < 1 or (limit >= 1 and float(limit).is_integer())):
            raise ValueError(f"--limit must be at least 1 item, or a share of them below 1, not {limit:g}")
        if self.fewshot is not None and self.fewshot < 0:
            raise ValueError(f"--fewshot must be at least 0, not {self.fewshot}")
        super().__post_init__()


def run(options: TaskOptions, report: Report = lambda name, done, total: None) -> dict[str, Any]:
    """Measure all rows; gives what results.json holds. Raises ValueError, one line, for everything a user can mend."""
    return _TaskEvaluation(options, report).run()


class _TaskEvaluation(evaluation.Evaluation):
    what = "quality on tasks of lm-evaluation-harness against true cost"

    def __init__(self, options: TaskOptions, report: Report):
        super().__init__(options, report)
        self._lm: DepthLM | None = None

    def tasks(self) -> dict[str, str]:
        options = self.options
        data = None if options.data_dir is None else DataFolder(options.data_dir, _first(options.limit))
        self.report("tasks", 0, 0)
        with redirect_stdout(sys.stderr):
            suites = load_suites(options.tasks, data, options.fewshot, options.run_code)
            for suite in suites:
                suite.check(options.limit)
        if options.run_code:
            sandbox.check_sandbox()
        self.suites = {suite.name: suite for suite in suites}
        return {suite.name: suite.digest(options.limit) for suite in suites}

    def ready(self, first: Subject) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        shots = {name: next(iter(s.parts.values())).get_config("num_fewshot") for name, s in self.suites.items()}
        arguments = {"tasks": list(self.options.tasks), "fewshot": shots}
        return {"what": "tasks", "harness": lm_eval.__version__}, arguments, {"lm_eval": lm_eval.__version__}

    def measure(self, subject: Subject, row: TableRow, task: str, store: Store) -> TaskRecord:
        options = self.options
        if self._lm is None or self._lm.llm is not subject.llm:
            self._lm = DepthLM(subject.llm)
        self._lm.report = lambda done, total: self.report(f"{row.name}, {task}", done, total)
        target = row.budget if row.kind not in ("baseline", "where") else self._target(row, task)
        lm, suite = self._lm, self.suites[task]

        def at(setting: Setting) -> TaskRecord:
            return measure_task(suite, lm, setting, store, options.limit, options.run_code)

        knob, read = subject.knob(row, target), options.setup.prompt_budget_of(row)
        if row.kind == "baseline" and isinstance(knob, float):
            # a curve is of long texts, and what is held is held from the 16th token on: short answers cost otherwise
            aimed = meet_cost(
                lambda aim: at(Setting.of(subject, aim, read)), lambda r: r.cost, target, subject.read_at(0.0)
            )
            return aimed[1]
        if row.part:
            written = 1.0 if row.part == "prompt" else row.budget
            return at(Setting.alike(TaskDials.of(subject.llm, written, subject.read_at(target))))
        return at(Setting.of(subject, knob, read))

    def _target(self, row: TableRow, task: str) -> float:
        """The cost that a row is to meet: what the plug-in had on the task in what was written; where no written token
        ran, its budget."""
        adaptive = next(name for name in self.records if name.endswith(f" {row.budget:g}"))
        cost = self.records[adaptive][task].cost
        return row.budget if math.isnan(cost) else cost

    def record(self, data: dict[str, Any]) -> TaskRecord:
        return TaskRecord.from_json(data)

    def summary(self) -> list[dict[str, Any]]:
        return summary(self.rows, self.records)


def _first(limit: float | None) -> int | None:
    """Rows of a file that a run can need; all of them where it needs a share."""
    return None if limit is None or limit < 1 else int(limit)
