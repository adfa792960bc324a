"""Training on texts that never come twice: any model, dense or converted, on answers alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.layers import Part
from depthdial.models.branches import branches_of
from depthdial.models.convert import head_of
from depthdial.models.converted import converted_of, is_converted
from depthdial.models.halves import Halves
from depthdial.models.scratch import Spec
from depthdial.testbed.tasks import IGNORED, Batch, World
from depthdial.train.budget import RAMP, BudgetControl
from depthdial.train.lesson import Lesson, row_keys

TRAIN, HELDOUT = 1, 2
"""Streams of texts, which share none."""
Report = Callable[[str, int, int], None]
"""What runs now, how much of it is done, and how much there will be at most."""
_KEY = 0x5851F42D  # keeps the random choices of two steps apart


@dataclass(frozen=True)
class Recipe:
    """How models are trained. Raises ValueError for what cannot train any."""

    size: str = "8x2@64"
    """LAYERSxHEADS@WIDTH of the deepest model, see `models.scratch.Spec`."""
    rows: int = 24
    """Texts in each step."""
    lr: float = 2e-3
    patience: int = 300
    """Steps that a hop may take to be learned before training goes on without it."""
    settle: int = 400
    """Steps of plain training, all k alike and the rate falling to nothing, that end the training of a dense model."""
    steps: int = 500
    """Steps in which a method is trained on the deepest dense model."""
    method_lr: float = 5e-4
    """Where a method trains on all weights of the dense model. Of few single runs the better ones had about this rate;
    how much of that is chance, seeds must say (docs/log.md)."""
    router_lr: float = 2.0
    """Of routers, relative to the rate of other weights."""

    def __post_init__(self):
        for name in ("rows", "patience", "settle", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not (self.lr > 0 and self.method_lr > 0 and self.router_lr > 0):
            raise ValueError("the learning rates must be positive")

    @property
    def spec(self) -> Spec:
        return Spec.parse(self.size)


def tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """Of a batch: ids, int64 [B, T], and where something is predicted, bool [B, T]."""
    return torch.from_numpy(batch.ids), torch.from_numpy(batch.labels != IGNORED)


def fit(
    model: PreTrainedModel, world: World, recipe: Recipe, seed: int, steps: int, budget: float | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> None:  # fmt: skip
    """Train all that may be trained of a model, dense or converted, on answers and filler: with its method's own loss,
    and, given a budget, held at that true cost by `train.budget`, which leaves the dial where it holds.
    """
    optimizer = optimizer_of(model, recipe)
    pupil = _Pupil(model, budget)
    model.train()
    for step in range(steps):
        report(step)
        batch, progress = world.batch(recipe.rows, seed, TRAIN, 0, step), step / steps
        rate = recipe.lr * min(1, (step + 1) / 50) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * progress))
        advance(optimizer, pupil.loss(batch, step, progress), rate, model)
        pupil.hold()
    pupil.end()
    model.eval()


class _Pupil:
    """The loss of one step of a model, and what is to be done beside it where it is routed."""

    def __init__(self, model: PreTrainedModel, budget: float | None):
        self.model, self.budget = model, budget
        self.routed = converted_of(model) if is_converted(model) else None
        self.control = self.exits = None
        if self.routed is not None and branches_of(model, Halves(model)) is not None:
            self.exits = Lesson(model, "lm", None)
        elif self.routed is not None and budget is not None:
            self.control = BudgetControl(budget, 1.0, self.routed.ledger.floor, ramp=0)

    def loss(self, batch: Batch, step: int, progress: float) -> Tensor:
        ids, there = tensors(batch)
        if self.routed is None:
            return self._each(ids, there, batch).sum() / there.sum()
        if self.exits is not None:  # all exits at once
            labels = F.pad(torch.from_numpy(batch.labels)[:, :-1], (1, 0), value=IGNORED)
            return self.exits(ids, labels, torch.arange(ids.shape[1]).expand(ids.shape))["loss"]
        offset, costs = 0.0, None
        if self.control is not None and self.budget is not None:  # what runs is learned before much is left out
            costs = torch.full((len(ids),), 1 - (1 - self.budget) * min(1.0, progress / RAMP))
            offset = self.control.offset(costs)
        self.routed.set(training=True, key=keys(ids, step), progress=progress, offset=offset)
        each, last = self._each(ids, there, batch), self.routed.route.last
        loss = each.sum() / there.sum()
        # who predicts nothing is judged by the mean of its text
        mean = each.detach().sum(-1) / there.sum(-1).clamp_min(1)
        came = torch.where(there, each.detach(), mean[:, None]).flatten()
        if (extra := self.routed.method.loss(replace(last.tokens, loss=came), last.trace)) is not None:
            loss = loss + extra.mean()
        if self.control is not None and costs is not None:
            cost, every = self.routed.route.token_cost().mean(-1), torch.ones(ids.shape)
            loss = loss + self.control.charge(last.tokens, last.trace, costs, cost, every) / ids.numel()
        return loss

    def _each(self, ids: Tensor, there: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each prediction, fp32 [B, T]; 0 where nothing is predicted."""
        hidden = self.model.get_decoder()(ids, use_cache=False).last_hidden_state[there]
        logits = head_of(self.model)(hidden).float()
        losses = F.cross_entropy(logits, torch.from_numpy(batch.labels)[there], reduction="none")
        return losses.new_zeros(there.shape).masked_scatter(there, losses)

    def hold(self) -> None:
        """After each step of the optimizer."""
        if self.control is not None and self.routed is not None:
            self.control.step(float(self.routed.route.last.tokens.count))

    def end(self) -> None:
        """Leave the model ready to be measured."""
        if self.routed is not None:
            offset = 0.0
            if self.control is not None and self.budget is not None:
                offset = float(self.control.offset(torch.tensor([self.budget])))
            self.routed.set(training=False, key=None, progress=1.0, offset=offset)


def keys(ids: Tensor, step: int) -> Tensor:
    """Of the random choices of each text in a step, int64 [B]."""
    return (row_keys(ids) + (step + 1) * _KEY) % 0x7FFFFFFF


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW on what may be trained; routers at a rate of their own."""
    routers = {
        id(w)
        for part in model.modules()
        if isinstance(part, Part) and part.runs_for == "all"
        for w in part.parameters()
    }
    weights = [w for w in model.parameters() if w.requires_grad]
    groups = [
        {"params": [w for w in weights if id(w) not in routers], "scale": 1.0},
        {"params": [w for w in weights if id(w) in routers], "scale": recipe.router_lr},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0)


def advance(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, model: nn.Module) -> None:
    """One step of the optimizer, down the gradient of a loss, at a learning rate."""
    loss.backward()
    nn.utils.clip_grad_norm_([w for w in model.parameters() if w.requires_grad], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
