"""What a run would fail by in the end, learned from the model's configuration before anything is read or trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthdial.core.method import Method
from depthdial.models.ahead import check_ahead, config_ahead, skeleton
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from depthdial.models.own import is_own
from depthdial.train.budget import BudgetControl
from depthdial.train.config import TrainConfig
from depthdial.train.lesson import reads_once


def foresee(config: TrainConfig, method: Method) -> None:
    """Raise ValueError, in about a second, for a model of an unknown family or with a rope that cannot run, for layers
    that the model does not have, for budgets below what the method can reach on it, and for prompts that the base
    cannot read for it.

    Nothing is said of a short name whose weights must be fetched first.
    """
    ahead = config_ahead(config.model)
    if ahead is None:
        return
    check_ahead(ahead)
    model = skeleton(ahead)
    if not is_own(model):
        convert(model, method.calibrate(FutureBase(ahead.num_hidden_layers)))
    converted = converted_of(model)
    check_prompt_reading(config, model)
    if config.objective == "distill" and any(step.relaxed and step.base for step in converted.program.steps):
        raise ValueError(
            f"what {config.method} trains acts in the untouched base, too, so that there is none to distil from; give "
            "--objective lm"
        )
    if config.budget is not None:
        low, high = bounds(config, config.budget, converted.ledger.floor)
        BudgetControl(low, high, converted.ledger.floor)


class FutureBase:
    """Stands for a base that is read later, where a method calibrates itself on it: what it says there does not matter
    here, but how many layers it has."""

    def __init__(self, depth: int):
        self.depth = depth

    def block_influence(self) -> Sequence[float]:
        return [0.0] * self.depth

    def divergence(self, dropped: Sequence[int]) -> float:
        return 0.0

    def readouts(self, layers: Sequence[int], head_rows: int | None) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        looks = torch.rand(len(layers), 64, 2, generator=generator)
        return looks, torch.rand(len(layers), 64, generator=generator) < looks[..., 0]


def check_prompt_reading(config: TrainConfig, model: PreTrainedModel) -> None:
    """Raise ValueError where a converted model is to be trained with prompts that the base reads, and what is written
    cannot go on from there."""
    learns = any(weight.requires_grad for weight in model.parameters())
    if learns and config.prompt_budget != "same" and not reads_once(converted_of(model)):
        raise ValueError(
            f"{config.method} leaves no K and V for what it skips, or adds blocks that the base does not run, so that "
            "its prompts cannot be read by the base; give --prompt-budget same"
        )


def bounds(config: TrainConfig, budget: float, floor: float) -> tuple[float, float]:
    """The lowest and the highest true cost that rows are trained at. floor: the lowest that the method can reach."""
    low = config.lowest if config.lowest is not None else max(budget - 0.05, min(budget, floor + 0.01))
    return low, max(config.highest, budget, low)
