"""An evaluation of what is written: every row answers every prompt, the base judges, and what is done is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from depthdial.core.dial import PromptBudget
from depthdial.engine.llm import LLM
from depthdial.evaluate import evaluation
from depthdial.evaluate.equal_cost import Knob, Mix, met
from depthdial.evaluate.evaluation import Report, check_options
from depthdial.evaluate.store import Store
from depthdial.evaluate.subjects import Row, Subject
from depthdial.evaluate.written.answers import Answer, Asked, Writer
from depthdial.evaluate.written.compare import Record, summary
from depthdial.evaluate.written.equal import cost_of, prompt_cost_of
from depthdial.evaluate.written.prompts import digest_of, name_of, prompts_of, text_of, tokens_of
from depthdial.models.own import is_own

TASK = "written"


@dataclass(frozen=True, kw_only=True)
class Options(evaluation.Options):
    """An evaluation. prompts: "default" or a file."""

    prompts: str = "default"
    max_tokens: int = 120

    def __post_init__(self):
        if self.limit is not None and not (self.limit >= 1 and float(self.limit).is_integer()):
            raise ValueError(f"--limit must be a whole number of prompts, at least 1, not {self.limit:g}")
        if self.max_tokens < 1:
            raise ValueError(f"--max-tokens must be at least 1, not {self.max_tokens}")
        check_options(self)


class Found(NamedTuple):
    """What a run found."""

    results: dict[str, Any]
    """What results.json holds."""
    texts: list[dict[str, Any]]
    """Each prompt with the answers of all rows, by the row's name."""


def run(options: Options, report: Report = lambda name, done, total: None) -> Found:
    """Measure all rows. Raises ValueError, one line, for everything a user can mend."""
    # without a prefix cache what runs is counted for every text
    options = replace(options, setup=replace(options.setup, prefix_cache=False))
    own = _Evaluation(options, report)
    return Found(own.run(), own.texts())


class _Evaluation(evaluation.Evaluation):
    what = "what is written, judged by the untouched base, against true cost"
    judge: LLM
    """The plug-in's engine, at full depth."""
    ids: list[list[int]]

    def __init__(self, options: Options, report: Report):
        super().__init__(options, report)
        self.prompts = prompts_of(options.prompts, options.limit)

    def tasks(self) -> dict[str, str]:
        return {TASK: digest_of(self.options.prompts)}

    def ready(self, first: Subject) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        options, self.judge = self.options, first.llm
        if is_own(first.llm.model) and first.llm.plugin is None:
            raise ValueError(
                f"{options.model} was trained with its routers and has no untouched base that could judge what it "
                "writes; give a base with a plug-in"
            )
        self.ids = tokens_of(self.prompts, first.llm, options.max_tokens)
        chat = bool(first.llm.tokenizer.chat_template)
        arguments = {"prompts": name_of(options.prompts), "max_tokens": options.max_tokens, "chat": chat}
        return {"what": TASK, "max_tokens": options.max_tokens}, arguments, {"sacrebleu": version("sacrebleu")}

    def measured(self, subject: Subject, row: Row, task: str, store: Store) -> Record:
        """Write a row's answers, at the cost that it is to meet where there is one, and let the base judge them."""
        writer = Writer(subject.llm, self.judge, self.options.max_tokens, partial(self.report, row.name))
        ids = self.ids
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
        return self.records[next(r.name for r in self.rows if r.kind == "adaptive" and r.budget == row.budget)][TASK]

    def record(self, kept: dict[str, Any]) -> Record:
        return Record.from_json(kept)

    def summary(self) -> list[dict[str, Any]]:
        return summary(self.rows, {row: of[TASK] for row, of in self.records.items()}, self.prompts)

    def texts(self) -> list[dict[str, Any]]:
        """Each prompt with the answers of all rows."""
        return [
            {
                "id": prompt.id,
                "task": prompt.task,
                "prompt": text_of(prompt),
                "answers": {row.name: vars(self.records[row.name][TASK].answers[i]) for row in self.rows},
            }
            for i, prompt in enumerate(self.prompts)
        ]


def _budgets(knob: Knob, count: int) -> list[float]:
    """Of each prompt: where a dial has steps the prompts take turns, so that the mean cost is met."""
    if not isinstance(knob, Mix):
        return [knob] * count
    return [knob.high if high else knob.low for high in knob.at_high(torch.arange(count)).tolist()]
