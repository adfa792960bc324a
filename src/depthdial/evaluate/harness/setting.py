"""Where the texts of a task run: the dials of a row, for what is scored, generated, or scored as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from depthdial.core.dial import Dials, PromptBudget
from depthdial.engine.llm import LLM
from depthdial.evaluate.equal_cost import Knob, KnobMix
from depthdial.evaluate.subjects import Subject
from depthdial.models.dial import offset_for


class TaskDials(NamedTuple):
    """Where texts run: what is scored after its context, what is generated after its prompt, and texts that are scored
    as a whole (perplexity), which nobody reads or writes: they run in the form of the papers, at one offset."""

    scored: Dials = Dials(math.inf)
    generated: Dials = Dials(math.inf)
    whole: Dials = Dials(math.inf)

    @classmethod
    def of(cls, llm: LLM, budget: float, prompt_budget: PromptBudget | None) -> TaskDials:
        """At budgets of what is written and of what is read; None is the engine's own. Where both are the same, most of
        what is scored is context, so the curve of text is asked, as it is for whole texts."""
        both, whole = llm.dials(budget, prompt_budget), Dials(offset_for(llm.model, budget, "text"))
        same = (llm.prompt_budget if prompt_budget is None else prompt_budget) == "same"
        return cls(whole if same else both, both, whole)


@dataclass(frozen=True)
class Setting:
    """The dial of each text of a task: where it has steps, texts take turns between two, so that a cost is met."""

    high: TaskDials
    low: TaskDials
    share: float
    """Of the texts are at `high`."""

    @classmethod
    def of(cls, subject: Subject, knob: Knob, prompt_budget: PromptBudget | None) -> Setting:
        """At the budget of what is written, and that of what is read as far as the model can have it beside."""

        def dial(budget: float) -> TaskDials:
            return TaskDials.of(subject.llm, budget, subject.reading(budget, prompt_budget))

        return cls(dial(knob.high), dial(knob.low), knob.share) if isinstance(knob, KnobMix) else cls.alike(dial(knob))

    @classmethod
    def alike(cls, dial: TaskDials) -> Setting:
        """All texts at one dial."""
        return cls(dial, dial, 1.0)

    def at(self, number: int) -> TaskDials:
        """That of a text."""
        return self.high if int((number + 1) * self.share) > int(number * self.share) else self.low
