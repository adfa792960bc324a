"""An evaluation of what is written: every row answers every prompt, the base judges, and what is done is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from depthdial.core.dial import PromptBudget
from depthdial.core.lock import locked
from depthdial.core.whole import disk_errors, plain, write_json
from depthdial.engine.llm import LLM
from depthdial.evaluate.equal_cost import Knob, Mix
from depthdial.evaluate.folder import FORMAT, RESULTS, Folder, check
from depthdial.evaluate.speed.machine import facts
from depthdial.evaluate.store import Store
from depthdial.evaluate.subjects import INT8, Lineup, Row, Setup, Subject, identity
from depthdial.evaluate.written.answers import Answer, Asked, Writer
from depthdial.evaluate.written.compare import Record, summary
from depthdial.evaluate.written.equal import cost_of, met, prompt_cost_of
from depthdial.evaluate.written.prompts import digest_of, name_of, prompts_of, text_of, tokens_of
from depthdial.maps.prompts import Prompt
from depthdial.models.fingerprint import fingerprint
from depthdial.models.own import is_own

Report = Callable[[str, int, int], None]
"""What runs now, chunks done, chunks in all."""
TASK = "written"


@dataclass(frozen=True)
class Options:
    """An evaluation. prompts: "default" or a file."""

    model: str
    lineup: Lineup
    setup: Setup
    prompts: str = "default"
    limit: float | None = None
    max_tokens: int = 120
    output: Path | None = None
    resume: bool = False

    def __post_init__(self):
        if self.limit is not None and not (self.limit >= 1 and float(self.limit).is_integer()):
            raise ValueError(f"--limit must be a whole number of prompts, at least 1, not {self.limit:g}")
        if self.max_tokens < 1:
            raise ValueError(f"--max-tokens must be at least 1, not {self.max_tokens}")
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output: the folder of the run that is to go on")
        self.lineup.check(self.setup)


class Found(NamedTuple):
    """What a run found."""

    results: dict[str, Any]
    """What results.json holds."""
    texts: list[dict[str, Any]]
    """Each prompt with the answers of all rows, by the row's name."""


def run(options: Options, report: Report = lambda name, done, total: None) -> Found:
    """Measure all rows. Raises ValueError, one line, for everything a user can mend."""
    if options.output is None:
        return _Evaluation(options, report).run()
    check(options.output, options.resume)
    with locked(options.output), disk_errors(lambda: "free some space and repeat the command with --resume"):
        return _Evaluation(options, report).run()


class _Evaluation:
    """One run, row by row."""

    def __init__(self, options: Options, report: Report):
        self.options, self.report = options, report
        self.prompts: list[Prompt] = prompts_of(options.prompts, options.limit)
        self.rows: list[Row] = []
        self.records: dict[str, Record] = {}

    def run(self) -> Found:
        options, lineup = self.options, self.options.lineup
        baselines = {name: identity(path) for name, path in lineup.baselines.items()}
        self.report("loading", 0, 0)
        # without a prefix cache what runs is counted for every text
        subjects = lineup.subjects(replace(options.setup, prefix_cache=False))
        with redirect_stdout(sys.stderr):
            first = next(subjects)()
        if is_own(first.llm.model) and first.llm.plugin is None:
            raise ValueError(
                f"{options.model} was trained with its routers and has no untouched base that could judge what it "
                "writes; give a base with a plug-in"
            )
        if first.name in lineup.baselines:
            raise ValueError(f"--plugin {first.name}=...: the plug-in itself has this name; choose another")
        judge, ids = first.llm, tokens_of(self.prompts, first.llm, options.max_tokens)
        folder = Folder(options.output, self._identity(first, baselines), options.resume)
        results = self._about(first)
        results["subjects"] = {**folder.subjects, first.name: first.about}
        self._subject(first, judge, ids, folder)
        self._write(results, folder, complete=False)
        for (name, rows), make in zip(lineup.others.items(), subjects, strict=True):
            if self._known(rows, folder):
                continue
            self.report(f"loading {name}", 0, 0)
            try:
                with redirect_stdout(sys.stderr):
                    subject = make()
            except ValueError as error:
                if name != INT8:
                    raise
                results["missing"] = {"base int8": str(error)}  # a device, or a model, without such kernels
                continue
            results["subjects"][name] = subject.about
            self._subject(subject, judge, ids, folder)
            self._write(results, folder, complete=False)
            del subject
        return Found(self._write(results, folder, complete=True), self._texts())

    def _known(self, rows: Sequence[Row], folder: Folder) -> bool:
        """Take the records of a subject's rows if all are there, so that it need not be loaded."""
        found = {row.name: folder.get(row, TASK) for row in rows}
        if not rows or any(record is None for record in found.values()):
            return False
        self.rows += rows
        self.records |= {name: Record.from_json(record) for name, record in found.items() if record is not None}
        return True

    def _subject(self, subject: Subject, judge: LLM, ids: Sequence[list[int]], folder: Folder) -> None:
        for row in subject.rows:
            self.rows.append(row)
            if (kept := folder.get(row, TASK)) is not None:
                self.records[row.name] = Record.from_json(kept)
                continue
            writer = Writer(subject.llm, judge, self.options.max_tokens, partial(self.report, row.name))
            record = self._record(writer, subject, row, ids, folder.store(row, TASK))
            folder.put(row, TASK, record.to_json())
            self.records[row.name] = record

    def _record(self, writer: Writer, subject: Subject, row: Row, ids: Sequence[list[int]], store: Store) -> Record:
        """Write a row's answers, at the cost that it is to meet where there is one, and let the base judge them."""
        read = self.options.setup.prompt_budget_of(row)
        target = 1.0 if row.kind in ("base", "int8", "adaptive") else self._beside(row).cost
        knob = subject.knob(row, target)
        spent = 0.0

        def written(budgets: Sequence[float], read: PromptBudget | None) -> list[Answer]:
            nonlocal spent
            asked = [Asked(own, b, subject.reading(b, read)) for own, b in zip(ids, budgets, strict=True)]
            answers, spent = writer.write(asked, store)
            return answers

        budgets = [1.0] * len(ids) if row.part == "prompt" else _budgets(knob, len(ids))
        if row.part:  # what is read is to cost what the adaptive row's written tokens do
            read, answers = met(lambda aim: written(budgets, aim), prompt_cost_of, target, subject.read_at(0.0))
        elif row.kind == "baseline" and isinstance(knob, float):
            aim, answers = met(lambda aim: written([aim] * len(ids), read), cost_of, target, subject.read_at(0.0))
            budgets = [aim] * len(ids)
        else:
            answers = written(budgets, read)
        return Record(budgets, read, writer.score(ids, answers, store), spent)

    def _beside(self, row: Row) -> Record:
        """That of the plug-in at the same budget."""
        return self.records[next(r.name for r in self.rows if r.kind == "adaptive" and r.budget == row.budget)]

    def _identity(self, first: Subject, baselines: dict[str, str]) -> dict[str, Any]:
        options = self.options
        return {
            "format": FORMAT,
            "fixed": {
                "what": TASK,
                "model": fingerprint(first.llm.model).weights,
                "plugin": options.lineup.identity(first.llm, options.model),
                "dtype": options.setup.dtype,
                "limit": options.limit,
                "max_tokens": options.max_tokens,
                "prompt_budget": options.setup.read_by(first.llm),
            },
            "tasks": {TASK: digest_of(options.prompts)},
            "baselines": baselines,
        }

    def _about(self, first: Subject) -> dict[str, Any]:
        options = self.options
        found = facts(first.llm.model.device)
        return {
            "what": "what is written, judged by the untouched base, against true cost",
            "complete": False,
            **found,
            "versions": {**found["versions"], "sacrebleu": version("sacrebleu")},
            "model": Path(options.model).name,
            "layers": first.llm.layers,
            "arguments": {
                "prompts": name_of(options.prompts),
                "limit": options.limit,
                "max_tokens": options.max_tokens,
                "prompt_budget": options.setup.read_by(first.llm),
                "budgets": list(options.lineup.budgets),
                "chat": bool(first.llm.tokenizer.chat_template),
                "dtype": options.setup.dtype,
                "baselines": list(options.lineup.baselines),
            },
            "subjects": {},
            "rows": [],
        }

    def _write(self, results: dict[str, Any], folder: Folder, complete: bool) -> dict[str, Any]:
        results["rows"] = summary(self.rows, self.records, self.prompts)
        results["complete"] = complete
        if folder.path is not None:
            write_json(folder.path / RESULTS, results)
        return plain(results)

    def _texts(self) -> list[dict[str, Any]]:
        return [
            {
                "id": prompt.id,
                "task": prompt.task,
                "prompt": text_of(prompt),
                "answers": {row.name: vars(self.records[row.name].answers[i]) for row in self.rows},
            }
            for i, prompt in enumerate(self.prompts)
        ]


def _budgets(knob: Knob, count: int) -> list[float]:
    """Of each prompt: where a dial has steps the prompts take turns, so that the mean cost is met."""
    if not isinstance(knob, Mix):
        return [knob] * count
    return [knob.high if high else knob.low for high in knob.at_high(torch.arange(count)).tolist()]
