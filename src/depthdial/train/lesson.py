"""What one training step computes: the module that the Hugging Face Trainer trains.

It owns the plug-in's parts and the budget control and nothing else: the frozen base is held outside the module tree, so
checkpoints hold a few megabytes and no optimizer state is kept for frozen weights.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.cost import token_cost
from depthdial.models.branches import Branches, Exits, branches_of
from depthdial.models.continuation import Continuation
from depthdial.models.convert import head_of
from depthdial.models.converted import Converted, converted_of
from depthdial.models.halves import Halves
from depthdial.models.head import shaping_of
from depthdial.models.loss import HeadLoss
from depthdial.train.budget import BudgetControl
from depthdial.train.config import Objective


class Base(NamedTuple):
    """The frozen base and its tools, kept out of the module tree."""

    model: PreTrainedModel
    halves: Halves
    loss: HeadLoss
    converted: Converted
    branches: Branches | Exits | None
    """Where they are all there is to train: each row trains all of them at once."""


def row_keys(input_ids: Tensor) -> Tensor:
    """A key for each row from its own tokens, int64 [B]: random choices follow the row into any batch."""
    places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    return ((input_ids + 7) * places * 0x9E3779B1 % 0x7FFFFFFF).sum(-1) % 0x7FFFFFFF


def copy_keys(keys: Tensor, copies: int) -> Tensor:
    """A key of its own for each copy of a row, int64 [B * copies]; the first copy keeps the row's. keys: int64 [B]."""
    return ((keys[:, None] + torch.arange(copies, device=keys.device) * 0x61C88647) % 0x7FFFFFFF).flatten()


class Lesson(nn.Module):
    """Forward pass, loss and bookkeeping of one micro-batch.

    objective: "lm" (cross-entropy on targets, as the paper) or "distill" (divergence from the untouched base, where a
    target is predicted). control: holds true costs at budgets drawn per row; None trains at offset 0 with the method's
    own loss (alpha). copies: how often a row whose prompts are read in full is written, each time at another budget;
    the base reads it once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        control: BudgetControl | None,
        compile: bool = False,
        divergence: str = "forward",
        copies: int = 1,
        shortlist: int | None = None,
    ):
        super().__init__()
        converted = converted_of(model)
        self.parts = nn.ModuleDict(trainable_parts(converted))
        self.control = control
        self.objective: Objective = objective
        self.copies = copies
        self._by_document = not compile and next(model.parameters()).device.type == "cpu"
        self.progress = 0.0
        """Share of training done, set by the trainer: the range of budgets widens with it."""
        self.totals: dict[str, Tensor] = {}
        """Sums since the last log: loss, cost, layers, tokens, and error of the budget."""
        self.divisor = 1.0
        """What the last loss was divided by: the targets of the whole optimizer step."""
        loss = HeadLoss(head_of(model), shaping_of(model.config), compile, divergence, shortlist)
        halves = Halves(model)
        self._base = (
            Base(model, halves, loss, converted, branches_of(model, halves)),
        )  # a tuple hides the base from the module tree

    def forward(
        self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, num_items_in_batch: Any = None,
        read_in_full: Tensor | None = None, **_: Any,
    ) -> dict[str, Tensor]:  # fmt: skip
        """input_ids, labels, position_ids: int64 [B, T]; labels -100 where a token is no target. Returns {"loss"}.

        read_in_full: bool []; where it is set, the targets are what is written and the untouched base reads the rest.
        """
        (base,) = self._base
        converted, control = base.converted, self.control
        lower = base.halves.lower(input_ids, position_ids=position_ids)
        # the last position predicts nothing; a document's first token follows nothing
        target = F.pad(labels[:, 1:].masked_fill(position_ids[:, 1:] == 0, -100), (0, 1), value=-100)
        full, teacher, text, copies = read_in_full is not None and bool(read_in_full), None, None, 1
        counts, key = labels != -100, int(row_keys(input_ids).sum())
        if base.branches is not None:
            return self._exits_loss(base.branches, lower, position_ids, target, counts, key, num_items_in_batch)
        if full or (self.objective == "distill" and reads_once(converted)):
            copies, every = self.copies, torch.ones_like(counts)
            text = Continuation(base.model, base.halves, position_ids, counts if full else every, self._by_document)
            with base_passes(converted):
                teacher = text.taken(text.read(lower))
            target = text.taken(target).masked_fill(~text.real, -100)
            # no pass follows the last token that is written; in the paper's form all targets are priced
            counts = target != -100 if full else text.taken(counts)
        elif self.objective == "distill":
            with torch.no_grad(), base_passes(converted):
                teacher = base.halves.upper(lower, position_ids=position_ids)
        keys = copy_keys(row_keys(input_ids), copies)
        weight = counts.float().repeat_interleave(copies, 0)
        budget = None if control is None else control.draw(row_keys(input_ids), self.progress, copies)
        offset = 0.0 if control is None or budget is None else control.offset(budget)
        with converted.using(offset=offset, read=None, training=True, key=keys, progress=self.progress):
            hidden = base.halves.upper(lower, position_ids=position_ids) if text is None else text.write(lower, copies)

        last = converted.route.last
        cost = (converted.route.token_cost() * weight).sum(-1) / weight.sum(-1).clamp_min(1)
        emphasis = torch.ones_like(cost) if budget is None else balance(budget)
        loss = self._task(hidden.unflatten(0, (-1, copies)), teacher, target, emphasis.unflatten(0, (-1, copies)), key)
        if control is None or budget is None:
            extra = converted.method.loss(last.tokens, last.trace)
            total = loss if extra is None else loss + (extra * weight.flatten()).sum()
        else:
            total = loss + control.charge(last.tokens, last.trace, budget, cost, weight)
        self._note(loss, cost, converted.route.layers_used.to(weight.device), budget, weight)
        return self._mean(total, weight, num_items_in_batch, copies)

    def _exits_loss(
        self, branches: Branches | Exits, lower: Tensor, position_ids: Tensor, target: Tensor, counts: Tensor, key: int,
        items: Any,
    ) -> dict[str, Tensor]:  # fmt: skip
        """`forward` where tokens leave the base by blocks of the method's own alone: the mean over all exits, none of
        which knows of the others. counts: bool [B, T]; target: int64 [B, T]."""
        (base,) = self._base
        teacher, hidden = branches.run(lower, position_ids)
        rows, exits = hidden.shape[:2]
        each = branches.each
        cost = token_cost(base.converted.ledger, each.tokens, each.trace).to(hidden.device).repeat(rows)
        layers = each.trace.keep(each.tokens.offset).sum(0).to(hidden.device).repeat(rows)
        weight = counts.float().repeat_interleave(exits, 0)
        teacher_hidden = teacher if self.objective == "distill" else None
        loss = self._task(hidden, teacher_hidden, target, branches.emphasis.to(hidden.device).expand(rows, exits), key)
        self._note(loss, cost, layers[:, None], None, weight)
        return self._mean(loss, weight, items, exits)

    def _mean(self, total: Tensor, weight: Tensor, items: Any, copies: int) -> dict[str, Tensor]:
        """The loss of a micro-batch by tokens. items: those of the whole optimizer step; None: this is all of it."""
        tokens = weight.sum() if items is None else torch.as_tensor(items) * copies
        self.divisor = float(tokens)
        return {"loss": total / tokens}

    def hold(self) -> None:
        """After each optimizer step: move offsets and price to where the last batch says they should be."""
        if self.control is not None:
            self.control.step(self.divisor)

    def _task(self, hidden: Tensor, teacher: Tensor | None, target: Tensor, emphasis: Tensor, key: int) -> Tensor:
        """Weighted sum of the objective over the places that predict a target.

        hidden: [B, copies, T, d]; teacher: [B, T, d]; target: int64 [B, T], the next token or -100; emphasis: fp32
        [B, copies].
        """
        (base,) = self._base
        there = target != -100
        at = hidden.transpose(1, 2)[there].transpose(0, 1)  # [copies, N, d]
        weight = emphasis[:, None].expand(*there.shape, -1)[there].T
        if teacher is not None:
            return base.loss.kl(at, teacher[there], weight, key).sum()
        return base.loss.ce(at, target[there], weight).sum()

    @torch.no_grad()
    def _note(self, loss: Tensor, cost: Tensor, layers: Tensor, budget: Tensor | None, weight: Tensor) -> None:
        share = weight.sum(-1)
        now = {
            "loss": loss,
            "cost": (cost * share).sum(),
            "layers": (layers * weight).sum(),
            "off_budget": torch.zeros_like(loss) if budget is None else ((cost - budget) * share).sum(),
            "tokens": weight.sum(),
        }
        self.totals = {k: self.totals.get(k, torch.zeros(())) + v.detach() for k, v in now.items()}


def balance(budget: Tensor) -> Tensor:
    """Weight of a row by its budget, fp32 [B]: gradients grow about as 1 - budget, so that low budgets would drown
    the high ones. 1 at budget 0.8."""
    return 0.2 / (1 - budget).clamp_min(0.02)


def base_passes(converted: Converted) -> AbstractContextManager[None]:
    """Passes of the untouched base."""
    return converted.using(offset=math.inf, read=None)


def reads_once(converted: Converted) -> bool:
    """Can what is written go on from what the untouched base has read? Not where blocks of the method's own have not
    read it, nor where a token leaves no K and V that a later one asks for. (Rows that keep their way miss none.)"""
    program = converted.program
    return all(step.base for step in program.steps) and (converted.method.by_row or not program.gaps)


def trainable_parts(converted: Converted) -> dict[str, nn.Module]:
    """What a training changes, by its name in checkpoints."""
    steps, plain = converted.program.steps, converted.program.plain
    parts: dict[str, nn.Module] = {
        f"{steps[s].block}_{steps[s].unit}" if plain else f"step_{s}": unit.parts
        for s, unit in converted.parted.items()
        if len(unit.parts) and steps[s].block >= 0  # an own block holds its step's parts
    }
    return parts | {f"own_{k}": block for k, block in enumerate(converted.own)}
