"""What one pre-training step computes beside the model's own forward pass: keys for random choices, loss, figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from depthdial.core.route import Route
from depthdial.models.converted import converted_of
from depthdial.train import processes
from depthdial.train.lesson import row_keys

_STEP = 0x5851F42D  # keeps the keys of two steps apart: noise must not be the same each time a row comes back


class NextToken:
    """Cross-entropy and the method's own loss for a routed model in the Trainer.

    The model is trained itself, so that its checkpoints are Hugging Face folders; this stands beside it. Used as
    `compute_loss_func`.
    """

    def __init__(self, model: PreTrainedModel, seed: int, compile: bool = False):
        self._losses = torch.compile(token_losses, dynamic=False) if compile else token_losses
        self.converted, self.seed = converted_of(model), seed
        self.step = 0
        self.totals: dict[str, Tensor] = {}
        """Sums over tokens since the last report: loss, cost, layers, tokens; kept per layer, [visits]."""
        self._hook = model.register_forward_pre_hook(self._begin, with_kwargs=True)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """outputs.logits: [B, T, V]; labels: int64 [B, T]. Returns the sum over what is predicted, by the step's
        tokens (all of a row, where transformers counts), fp32 []."""
        losses = self._losses(outputs.logits, labels)
        route = self.converted.route
        each = F.pad(losses.detach(), (0, 1)).flatten()
        tokens = replace(route.last.tokens, density=densities(route, losses.shape[1]), loss=each)
        extra = self.converted.method.loss(tokens, route.last.trace)
        total = losses.sum() if extra is None else losses.sum() + extra.view(route.shape)[:, :-1].sum()
        count = losses.numel() if num_items_in_batch is None else num_items_in_batch
        now = {"loss": losses.detach().sum(), **sums(route, losses.shape[1])}
        self.totals = {name: self.totals[name] + value if name in self.totals else value for name, value in now.items()}
        return total / count

    def close(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()
        self.converted.set(training=False, key=None)

    def _begin(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        keys = row_keys(ids) + (self.step + 1) * _STEP + self.seed * 0x9E3779B1
        key = keys % 0x7FFFFFFF if model.training else None
        self.converted.set(offset=0.0, read=None, training=model.training, key=key)


class Steps(TrainerCallback):
    """Tells the loss which step it is, and the method how far training is, also after a resume."""

    def __init__(self, lesson: NextToken):
        self.lesson = lesson

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lesson.step = state.global_step
        self.lesson.converted.set(progress=state.global_step / max(state.max_steps, 1))


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each token that follows another, fp32 [B, T - 1]. logits: [B, T, V]; labels: int64 [B, T]."""
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="none")
    return losses.view(labels.shape[0], -1)


@torch.no_grad()
def densities(route: Route, length: int) -> dict[int, Tensor]:
    """The share of tokens that ran each routed step, fp32 scalars, over this pass's rows on all processes (each has as
    many): what a density loss must look at, so that it is the same however a batch is shared out."""
    shares = {s: decision.keep[:, :length].float().mean() for s, decision in route.decisions.items()}
    processes.total(list(shares.values()))
    return {s: share / processes.world() for s, share in shares.items()}


@torch.no_grad()
def sums(route: Route, length: int, rows: Tensor | None = None) -> dict[str, Tensor]:
    """Sums over the first `length` tokens of each row of the last forward pass, fp32: tokens, cost, layers [] and
    kept [visits], the tokens that ran each layer. rows: fp32 [B], 0 for a row that does not count."""
    cost = route.token_cost()[:, :length].float()
    rows = cost.new_ones(cost.shape[0]) if rows is None else rows
    tokens = rows.sum() * length
    trace = route.last.trace.keep(cost.new_zeros(route.last.tokens.count))
    kept = (trace.view(-1, *route.shape)[:, :, :length] * rows[:, None]).sum((1, 2))
    return {"cost": (cost * rows[:, None]).sum(), "layers": kept.sum(), "kept": kept, "tokens": tokens}
