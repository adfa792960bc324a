"""What one training step computes: the module that the Hugging Face Trainer trains.

It owns the plug-in's parts and the budget control and nothing else: the frozen base is held outside the module tree, so
checkpoints hold a few megabytes and no optimizer state is kept for frozen weights.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.method import Method
from depthdial.core.route import Route
from depthdial.models.convert import head_of, method_of, route_of, routed
from depthdial.models.halves import Halves
from depthdial.models.loss import HeadLoss
from depthdial.train.budget import BudgetControl

Objective = Literal["lm", "distill"]


class Base(NamedTuple):
    """The frozen base's tools, kept out of the module tree."""

    halves: Halves
    loss: HeadLoss
    route: Route
    method: Method


def row_keys(input_ids: Tensor) -> Tensor:
    """A key for each row from its own tokens, int64 [B]: random choices follow the row into any batch."""
    places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    return ((input_ids + 7) * places * 0x9E3779B1 % 0x7FFFFFFF).sum(-1) % 0x7FFFFFFF


class Lesson(nn.Module):
    """Forward pass, loss and bookkeeping of one micro-batch.

    objective: "lm" (cross-entropy on targets, as the paper) or "distill" (KL from the untouched base,
    where a target is predicted).
    control: holds true costs at budgets drawn per row; None trains at offset 0 with the method's own loss (alpha).
    """

    def __init__(
        self, model: PreTrainedModel, objective: Objective, control: BudgetControl | None, compile: bool = False
    ):
        super().__init__()
        units = routed(model)
        self.parts = nn.ModuleDict({f"{s.layer}_{s.unit}": unit.parts for s, unit in units.items() if len(unit.parts)})
        self.control = control
        self.objective: Objective = objective
        self.progress = 0.0
        """Share of training done, set by the trainer: the range of budgets widens with it."""
        self.seen: dict[str, Tensor] = {}
        """Sums since the last log: loss, cost, layers, tokens, and error of the budget."""
        self.divisor = 1.0
        """What the last loss was divided by: the targets of the whole optimizer step."""
        route, method = route_of(model), method_of(model)
        softcap = getattr(model.config, "final_logit_softcapping", None)
        loss = HeadLoss(head_of(model), softcap, compile)
        halves = Halves(model, min(site.layer for site in units))
        self._base = (Base(halves, loss, route, method),)  # a tuple hides the base from the module tree

    def forward(
        self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, num_items_in_batch: Any = None, **_: Any
    ) -> dict[str, Tensor]:
        """input_ids, labels, position_ids: int64 [B, T]; labels -100 where a token is no target. Returns {"loss"}."""
        (base,) = self._base
        route, control = base.route, self.control
        keys = row_keys(input_ids)
        lower = base.halves.lower(input_ids, position_ids=position_ids)
        weight = (labels != -100).float()
        teacher = None
        if self.objective == "distill":
            route.offset = math.inf
            with torch.no_grad():
                teacher = base.halves.upper(lower, position_ids=position_ids)
        budget = None if control is None else control.draw(keys, self.progress)
        route.offset = 0.0 if control is None or budget is None else control.offset(budget)
        route.training, route.sample, route.progress = True, keys, self.progress
        hidden = base.halves.upper(lower, position_ids=position_ids)
        route.training, route.sample = False, None

        cost = (route.token_cost() * weight).sum(-1) / weight.sum(-1).clamp_min(1)
        emphasis = torch.ones_like(cost) if budget is None else balance(budget)
        loss = self._task(hidden, teacher, labels, position_ids, emphasis[:, None])
        if control is None or budget is None:
            extra = base.method.loss(route)
            total = loss if extra is None else loss + (extra * weight).sum()
        else:
            total = loss + control.charge(route, budget, cost, weight)
        self._note(loss, cost, budget, weight)
        tokens = weight.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        self.divisor = float(tokens)
        return {"loss": total / tokens}

    def hold(self) -> None:
        """After each optimizer step: move offsets and price to where the last batch says they should be."""
        if self.control is not None:
            self.control.step(self.divisor)

    def _task(
        self, hidden: Tensor, teacher: Tensor | None, labels: Tensor, positions: Tensor, emphasis: Tensor
    ) -> Tensor:
        """Weighted sum of the objective where the batch's targets are predicted: position t - 1 predicts token t."""
        (base,) = self._base
        # the last position predicts nothing; a document's first token follows nothing
        target = F.pad(labels[:, 1:].masked_fill(positions[:, 1:] == 0, -100), (0, 1), value=-100)
        weight = ((target != -100).float() * emphasis).flatten()
        if teacher is not None:
            return base.loss.kl(hidden.flatten(0, 1), teacher.flatten(0, 1), weight).sum()
        return base.loss.ce(hidden.flatten(0, 1), target.clamp_min(0).flatten(), weight).sum()

    @torch.no_grad()
    def _note(self, loss: Tensor, cost: Tensor, budget: Tensor | None, weight: Tensor) -> None:
        route = self._base[0].route
        share = weight.sum(-1)
        now = {
            "loss": loss,
            "cost": (cost * share).sum(),
            "layers": (route.layers_used.to(weight.device) * weight).sum(),
            "off_budget": torch.zeros_like(loss) if budget is None else ((cost - budget) * share).sum(),
            "tokens": weight.sum(),
        }
        self.seen = {k: self.seen.get(k, torch.zeros(())) + v.detach() for k, v in now.items()}


def balance(budget: Tensor) -> Tensor:
    """Weight of a row by its budget, fp32 [B]: gradients grow about as 1 - budget, so that low budgets would drown
    the high ones. 1 at budget 0.8."""
    return 0.2 / (1 - budget).clamp_min(0.02)
