"""What a run would fail by in the end, learned from the model's configuration before anything is read or trained."""

from __future__ import annotations

import dataclasses

from depthdial.core.method import Method
from depthdial.methods import Static
from depthdial.models.ahead import check_ahead, config_ahead, skeleton
from depthdial.models.convert import convert, route_of
from depthdial.train.budget import BudgetControl
from depthdial.train.config import TrainConfig


def foresee(config: TrainConfig, method: Method) -> None:
    """Raise ValueError, in about a second, for a model of an unknown family or with a rope that cannot run, for layers
    that the model does not have, and for budgets below what the method can reach on it.

    Nothing is said of a short name whose weights must be fetched first.
    """
    if config.prompt_budget != "same" and method.kv != "project" and method.grain != "static":
        raise ValueError(
            f"{config.method} leaves no K and V for what it skips, so that its prompts cannot be read by the base; "
            "give --prompt-budget same"
        )
    found = config_ahead(config.model)
    if found is None:
        return
    check_ahead(found)
    if isinstance(method, Static) and not method.order:  # ranked on the base later; which layers does not matter here
        method = dataclasses.replace(method, order=tuple(range(min(method.length, found.num_hidden_layers - 1))))
    floor = route_of(convert(skeleton(found), method)).ledger.floor
    if config.budget is not None:
        low, high = bounds(config, config.budget, floor)
        BudgetControl(low, high, floor)


def bounds(config: TrainConfig, budget: float, floor: float) -> tuple[float, float]:
    """The lowest and the highest true cost that rows are trained at. floor: the lowest that the method can reach."""
    low = config.lowest if config.lowest is not None else max(budget - 0.05, min(budget, floor + 0.01))
    return low, max(config.highest, budget, low)
