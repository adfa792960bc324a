"""How an engine is set up: the keyword arguments of `LLM` beside the model's own, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from depthdial.engine.auto import AutoBudget
from depthdial.engine.unknown import refuse_unknown

Budget = float | Literal["auto"] | None


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig`, as keyword arguments."""

    max_batch: int
    cache_tokens: int | None
    weights: Literal["auto", "int8"]
    prefix_cache: bool
    target_tokens_per_second: float | None
    budget_bounds: tuple[float, float]


@dataclass(frozen=True)
class EngineConfig:
    """Raises ValueError, one line, for what makes no sense."""

    max_batch: int = 16
    """Texts at a time."""
    cache_tokens: int | None = None
    """Room of the KV cache; None is enough for a few texts."""
    weights: Literal["auto", "int8"] = "auto"
    """"int8" reads half the bytes of bf16 and is a little less exact."""
    prefix_cache: bool = True
    """Equal beginnings of texts run once."""
    target_tokens_per_second: float | None = None
    """With budget="auto": of each text; None follows the load."""
    budget_bounds: tuple[float, float] = (0.75, 1.0)
    """With budget="auto": between which budgets the dial moves."""

    def __new__(cls, *_args: Any, **names: Any):
        refuse_unknown("LLM", [field.name for field in fields(cls)], names)
        return super().__new__(cls)

    def __post_init__(self):
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, not {self.max_batch}")
        if self.cache_tokens is not None and self.cache_tokens < 1:
            raise ValueError(f"cache_tokens must be at least 1, not {self.cache_tokens}")
        if self.weights not in ("auto", "int8"):
            raise ValueError(f"weights must be 'auto' or 'int8', not {self.weights!r}")

    def auto(self, budget: Budget) -> AutoBudget | None:
        """What moves the budget, where it is "auto"."""
        if budget == "auto":
            return AutoBudget(*self.budget_bounds, self.target_tokens_per_second)
        if isinstance(budget, str):
            raise ValueError(f"budget must be a number up to 1.0, or 'auto', not {budget!r}")
        if self.target_tokens_per_second is not None:
            raise ValueError("target_tokens_per_second moves the budget, so give budget='auto' with it")
        return None
