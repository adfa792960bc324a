"""How an engine is set up: the keyword arguments of `LLM` beside the model's own, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, get_args

from depthdial.engine.auto import AutoBudget
from depthdial.engine.unknown import refuse_unknown

Budget = float | Literal["auto"] | None
Weights = Literal["auto", "int8", "int4", "int4-head", "file"]
Activations = Literal["auto", "exact", "int8"]


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig`, as keyword arguments."""

    max_batch: int
    cache_tokens: int | None
    weights: Weights
    activations: Activations
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
    weights: Weights = "auto"
    """"int8" reads half the bytes of bf16 and is a little less exact. "int4": layers in groups of 32 weights with scale
    and minimum, the head in 8 bits; "int4-head": the head, too. "file": the blocks of the model's own GGUF file."""
    activations: Activations = "auto"
    """Under narrow weights: "auto" multiplies those of prompts as they are, others in int8; "exact" all as they are."""
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
        for name, kinds in (("weights", Weights), ("activations", Activations)):
            if (value := getattr(self, name)) not in get_args(kinds):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kinds))}, not {value!r}")

    def auto(self, budget: Budget) -> AutoBudget | None:
        """What moves the budget, where it is "auto"."""
        if budget == "auto":
            return AutoBudget(*self.budget_bounds, self.target_tokens_per_second)
        if isinstance(budget, str):
            raise ValueError(f"budget must be a number up to 1.0, or 'auto', not {budget!r}")
        if self.target_tokens_per_second is not None:
            raise ValueError("target_tokens_per_second moves the budget, so give budget='auto' with it")
        return None
