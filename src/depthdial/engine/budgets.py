"""From budgets to the dials of a text: what an `LLM` asks of texts that do not say."""

from __future__ import annotations

from typing import Any

from depthdial.core.dial import Dials, PromptBudget
from depthdial.engine.auto import AutoBudget
from depthdial.engine.config import Budget
from depthdial.models.convert import converted_of
from depthdial.models.dial import dials_for, offset_for, prompt_budget_for, stop_for


class Budgets:
    """model: converted. budget: of what is written, None the plug-in's recommended one; read: of prompts, None 1.0, or
    "same" for a model that has no untouched base; auto: what moves the former where it is "auto"; hold: may each text's
    own budget be held?

    Raises ValueError for budgets that the model cannot have.
    """

    def __init__(
        self, model: Any, budget: Budget, read: PromptBudget | None, auto: AutoBudget | None = None, hold: bool = True
    ):
        self._model, self.auto, self._hold = model, auto, hold
        converted = converted_of(model)
        recommended = None if converted.plugin is None else converted.plugin.recommended
        told = None if isinstance(budget, str) else budget
        self._write: float | None = told if told is not None else recommended if converted.routed else 1.0
        self.read: PromptBudget = prompt_budget_for(model, read)
        """True cost of what is read, of texts that do not say."""
        self.steady = converted.method.by_row
        """Must a text's dial stay where it began? What is skipped leaves no K and V, so none may come back for them."""
        for bound in (None,) if auto is None else (auto.lowest, auto.highest):
            self.dials(bound)

    @property
    def write(self) -> float | None:
        """True cost of what is written, of texts that do not say; None: the plug-in's trained form."""
        return self._write if self.auto is None else self.auto.budget

    def offset(self, budget: float | None) -> float:
        """The offset of written tokens, before any is held. ValueError outside the curve."""
        return offset_for(self._model, self.write if budget is None else budget, kind="generated")

    def stop(self, budget: float | None) -> float | None:
        """See `models.dial.stop_for`; budget None is this one."""
        return stop_for(self._model, self.write if budget is None else budget)

    def dials(self, budget: float | None = None, read: PromptBudget | None = None) -> Dials:
        """Where a text runs; None: as this says. A budget that moves by itself is not held. ValueError outside the
        curves, and for what the model cannot do."""
        read = self.read if read is None else read
        dials = dials_for(self._model, self.write if budget is None else budget, read)
        if self._hold and not (self.auto is not None and budget is None):
            return dials
        return Dials(self.offset(budget), dials.read)
