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
from depthdial.evaluate.equal_cost import Knob, KnobMix, meet_cost
from depthdial.evaluate.evaluation import Report
from depthdial.evaluate.store import Store
from depthdial.evaluate.subjects import Subject, TableRow
from depthdial.evaluate.written.answers import Answer, PromptRequest, Writer
from depthdial.evaluate.written.compare import AnswerSet, summary
from depthdial.evaluate.written.equal import cost_of, prompt_cost_of
from depthdial.evaluate.written.prompts import digest_of, prompt_tokens, prompts_of, source_name, text_of
from depthdial.models.own import is_own

TASK = "written"


@dataclass(frozen=True, kw_only=True)
class WrittenOptions(evaluation.EvaluationOptions):
    """An evaluation. prompts: "default" or a file."""

    prompts: str = "default"
    max_tokens: int = 120

    def __post_init__(self):
        if self.limit is not None and not (self.limit >= 1 and float(self.limit).is_integer()):
            raise ValueError(f"--limit must be a whole number of prompts, at least 1, not {self.limit:g}")
        if self.max_tokens < 1:
            raise ValueError(f"--max-tokens must be at least 1, not {self.max_tokens}")
        super().__post_init__()


class WrittenResults(NamedTuple):
    """What a run found."""

    results: dict[str, Any]
    """What results.json holds."""
    texts: list[dict[str, Any]]
    """Each prompt with the answers of all rows, by the row's name."""


def run(options: WrittenOptions, report: Report = lambda name, done, total: None) -> WrittenResults:
    """Measure all rows. Raises ValueError, one line, for everything a user can mend."""
    # without a prefix cache what runs is counted for every text
    options = replace(options, setup=replace(options.setup, prefix_cache=False))
    own = _WrittenEvaluation(options, report)
    return WrittenResults(own.run(), own.texts())


class _WrittenEvaluation(evaluation.Evaluation):
    what = "what is written, judged by the untouched base, against true cost"
    judge: LLM
    """The plug-in's engine, at full depth."""
    ids: list[list[int]]

    def __init__(self, options: WrittenOptions, report: Report):
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
        self.ids = prompt_tokens(self.prompts, first.llm, options.max_tokens)
        chat = bool(first.llm.tokenizer.chat_template)
        arguments = {"prompts": source_name(options.prompts), "max_tokens": options.max_tokens, "chat": chat}
        return {"what": TASK, "max_tokens": options.max_tokens}, arguments, {"sacrebleu": version("sacrebleu")}

    def measure(self, subject: Subject, row: TableRow, task: str, store: Store) -> AnswerSet:
        """Write a row's answers, at the cost that it is to meet where there is one, and let the base judge them."""
        writer = Writer(subject.llm, self.judge, self.options.max_tokens, partial(self.report, row.name))
        ids = self.ids
        prompt = self.options.setup.prompt_budget_of(row)
        target = 1.0 if row.kind in ("base", "int8", "adaptive") else self._beside(row).cost
        knob = subject.knob(row, target)
        seconds = 0.0

        def write(budgets: Sequence[float], prompt: PromptBudget | None) -> list[Answer]:
            nonlocal seconds
            requests = [PromptRequest(own, b, subject.reading(b, prompt)) for own, b in zip(ids, budgets, strict=True)]
            answers, seconds = writer.write(requests, store)
            return answers

        budgets = [1.0] * len(ids) if row.part == "prompt" else _budgets(knob, len(ids))
        if row.part:  # what is read is to cost what the adaptive row's written tokens do
            prompt, answers = meet_cost(lambda aim: write(budgets, aim), prompt_cost_of, target, subject.read_at(0.0))
        elif row.kind == "baseline" and isinstance(knob, float):
            aim, answers = meet_cost(lambda aim: write([aim] * len(ids), prompt), cost_of, target, subject.read_at(0.0))
            budgets = [aim] * len(ids)
        else:
            answers = write(budgets, prompt)
        return AnswerSet(budgets, prompt, writer.score(ids, answers, store), seconds)

    def _beside(self, row: TableRow) -> AnswerSet:
        """That of the plug-in at the same budget."""
        return self.records[next(r.name for r in self.rows if r.kind == "adaptive" and r.budget == row.budget)][TASK]

    def record(self, data: dict[str, Any]) -> AnswerSet:
        return AnswerSet.from_json(data)

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
    if not isinstance(knob, KnobMix):
        return [knob] * count
    return [knob.high if high else knob.low for high in knob.at_high(torch.arange(count)).tolist()]
