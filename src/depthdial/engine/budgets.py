"""From budgets to the dials of a text: what an `LLM` asks of texts that do not say, and what a model cannot do."""

from __future__ import annotations

import math
from typing import Any

from depthdial.core.dial import PromptBudget
from depthdial.core.dial import prompt_budget as checked
from depthdial.engine.auto import AutoBudget
from depthdial.engine.config import Budget
from depthdial.engine.dials import Dials
from depthdial.models.convert import method_of
from depthdial.models.dial import offset_for
from depthdial.models.own import is_own


class Budgets:
    """model: converted. budget: of what is written, None the plug-in's recommended one; read: of prompts, None 1.0, or
    "same" for a model that has no untouched base; auto: what moves the former where it is "auto".

    Raises ValueError for budgets that the model cannot have.
    """

    def __init__(self, model: Any, budget: Budget, read: PromptBudget | None, auto: AutoBudget | None):
        self._model, self.auto = model, auto
        self._method, depth = method_of(model), model.config.get_text_config().num_hidden_layers
        plugin, routed = getattr(model, "plugin", None), bool(self._method.layers(depth))
        self.has_base = not routed or (self._method.frozen and not (is_own(model) and plugin is None))
        """Is there an untouched base, or was the model trained with its routers?"""
        recommended = None if plugin is None else plugin.recommended
        told = None if isinstance(budget, str) else budget
        self._write: float | None = told if told is not None else recommended if routed else 1.0
        self.read: PromptBudget = checked((1.0 if self.has_base else "same") if read is None else read)
        """True cost of what is read, of texts that do not say."""
        for bound in (None,) if auto is None else (auto.lowest, auto.highest):
            self.dials(bound)

    @property
    def write(self) -> float | None:
        """True cost of what is written, of texts that do not say; None: the plug-in's trained form."""
        return self._write if self.auto is None else self.auto.budget

    @property
    def steady(self) -> bool:
        """Must a text's dial stay where it began? What is skipped leaves no K and V, so none may come back for them."""
        return self._method.kv != "project"

    def offset(self, budget: float | None) -> float:
        """The offset of written tokens. ValueError outside the curve."""
        return offset_for(self._model, self.write if budget is None else budget, kind="generated")

    def dials(self, budget: float | None = None, read: PromptBudget | None = None) -> Dials:
        """Where a text runs; None: as this says. ValueError outside the curves, and for what the model cannot do."""
        asked = self.read if read is None else checked(read)
        offset = self.offset(budget)
        if asked == "same":
            return Dials(offset)
        if not self.has_base:
            raise ValueError(
                f"prompt_budget is {asked}, but this model was trained with its routers and has no untouched base to "
                'read a prompt with; use prompt_budget="same"'
            )
        reading = self._reading(asked)
        if self.steady and reading < offset:
            raise ValueError(
                f"prompt_budget {asked} is below what is written, which would look for K and V that "
                f'{type(self._method).__name__} leaves out; raise it, or use 1.0 or "same"'
            )
        return Dials(offset, reading)

    def _reading(self, asked: float) -> float:
        if asked == 1.0:
            return math.inf
        try:
            return offset_for(self._model, asked, kind="text")
        except ValueError as error:
            raise ValueError(f"prompt_budget: {error}") from None
