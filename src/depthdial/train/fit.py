"""Where adapters start: each is fitted, layer by layer, to what its frozen layer adds to the residual stream.

An adapter from zero learns only through routers that learn at the same time. Fitted ones make a skip bearable at once
(docs/log.md has the figures), and the fit is local: no head, no teacher, one forward pass of the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.models.convert import layers_of
from depthdial.models.converted import converted_of
from depthdial.models.family import input_norm
from depthdial.train.progress import Progress


class LayerFit:
    """Catches the input and the output of routed layers of the untouched base and regresses adapters on them."""

    def __init__(self, model: PreTrainedModel):
        layers = layers_of(model)
        self.model = model
        self.adapters: dict[int, nn.Module] = {
            unit.step.block: unit.parts["adapter"]
            for unit in converted_of(model).routed.values()
            if "adapter" in unit.parts and unit.step.base
        }
        self.norms = {i: input_norm(layers[i], "mlp", model.config.rms_norm_eps) for i in self.adapters}
        self.error: dict[int, Tensor] = {}
        self.loss: Tensor = torch.zeros(())

    def run(self, batch: dict[str, Tensor]) -> Tensor:
        """Sum over layers of the relative squared error of one batch; gradients reach adapters only."""
        layers = layers_of(self.model)
        real = (batch["labels"] != -100).float()
        self.loss = torch.zeros(())
        hooks = [layers[i].register_forward_hook(self._catch(i, real), with_kwargs=True) for i in self.adapters]
        try:
            with torch.no_grad():
                self.model.get_decoder()(
                    input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
                )
        finally:
            for hook in hooks:
                hook.remove()
        return self.loss

    def _catch(self, layer: int, real: Tensor):
        def hook(_module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            update = (out - x).float()
            size = update.square().sum(-1)
            mean = (size * real).sum() / real.sum()
            with torch.enable_grad():
                guess = self.adapters[layer](self.norms[layer](x)).float()
                # per token, so that a few tokens with huge activations (attention sinks) do not own the fit
                error = ((guess - update).square().sum(-1) / (size + mean) * real).sum() / real.sum()
                self.loss = self.loss + error
            floor = (size / (size + mean) * real).sum() / real.sum()
            self.error[layer] = (error / floor).detach().sqrt()

        return hook


def fit_adapters(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], steps: int, lr: float = 3e-3
) -> dict[int, float]:
    """Fit every adapter of a converted model for `steps` batches; returns the last relative error by layer (1: no use).

    batches: dicts of int64 [B, T] `input_ids`, `labels` (-100 at padding), `position_ids`.
    """
    fit = LayerFit(model)
    if not fit.adapters or steps < 1:
        return {}
    optimizer = torch.optim.AdamW([p for a in fit.adapters.values() for p in a.parameters()], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1)
    full_depth = converted_of(model).using(offset=math.inf, read=None)
    with full_depth, Progress("fitting adapters", steps) as progress:
        for _, batch in zip(range(steps), batches, strict=False):
            fit.run(batch).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            mean = float(torch.stack(list(fit.error.values())).mean())
            progress.advance(batch["input_ids"].numel(), error=mean)
    return {layer: float(error) for layer, error in sorted(fit.error.items())}
