"""Training in a loop of one's own: the method's loss after a pass, and the dial's curve when training is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthdial.core.dial import Curve
from depthdial.models.calibration import Batch, Heldout, curve_of
from depthdial.models.checkpoint import Plugin, plugin_of
from depthdial.models.converted import converted_of, unwrapped
from depthdial.models.fingerprint import fingerprint

LONGEST = 512
"""Tokens of a text that the curve is measured on."""


def method_loss(model: nn.Module) -> Tensor:
    """The method's own loss (a penalty on depth, a target of density) over the last forward pass of a converted model:
    its mean over the pass's real tokens, an fp32 scalar with gradients for routers. Add it to the loss of the task. 0
    where the method has none.

    model: converted; what accelerate, DDP or peft put around it does not matter. Raises ValueError for a model that is
    not converted, and before a pass has run.
    """
    converted = converted_of(unwrapped(model))
    last = converted.route.last
    loss = converted.method.loss(last.tokens, last.trace) if last.trace.decisions else None
    if loss is None:
        return torch.zeros((), device=last.tokens.offset.device)
    real = last.tokens.real
    return loss.mean() if real is None else (loss * real).sum() / real.sum().clamp_min(1)


def calibrate(
    model: nn.Module,
    data: Iterable[str | Tensor | Mapping[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    recommended: float | None = None,
) -> Curve:
    """Measure the budget curve of a converted model, and give it the dial: what each budget costs and loses on held-out
    text. Afterwards `set_budget` and budgets of `load` work, and `save` keeps the curve with the plug-in.

    data: held-out texts, with the tokenizer; or batches as a DataLoader gives them, with `input_ids`, int64 [B, T], and
    where there are such `attention_mask`, `position_ids` and `labels` (-100: the token does not count); or `input_ids`
    alone. All of them are kept in memory; some 16,000 tokens are enough. recommended: the budget that is used where
    none is asked for; None: what the model costs as it was trained.
    Raises ValueError for a model that is not converted, no data, or a budget out of reach.
    """
    inner = unwrapped(model)
    converted, training = converted_of(inner), inner.training
    inner.eval()
    try:
        with converted.using(training=False, read=None):
            heldout = Heldout(inner, list(_batches(data, tokenizer, inner)))
            curve = curve_of(inner, heldout.measure)
            if recommended is None and curve.floor <= 1:
                recommended = min(1.0, max(curve.floor, round(heldout.measure(0.0)[0], 3)))
    finally:
        inner.train(training)
    if recommended is not None:
        curve.offset(recommended)  # refuses what is out of reach
    plugin = plugin_of(inner) or Plugin("", converted.method, fingerprint(inner))
    converted.plugin = dataclasses.replace(plugin, curves={"text": curve}, recommended=recommended)
    return curve


def _batches(data: Iterable[Any], tokenizer: PreTrainedTokenizerBase | None, model: PreTrainedModel) -> Iterator[Batch]:
    count = 0
    for item in data:
        count += 1
        if isinstance(item, str):
            if tokenizer is None:
                raise ValueError("the curve is measured on tokens: give the tokenizer of these texts, too")
            item = tokenizer(item, truncation=True, max_length=LONGEST, return_tensors="pt")
        yield _batch({"input_ids": item} if isinstance(item, Tensor) else item, model.device)
    if not count:
        raise ValueError("no text to measure the budget curve on; give some held-out texts or batches")


def _batch(item: Mapping[str, Any], device: torch.device) -> Batch:
    """A batch as `Heldout` takes it. Padding, on either side, has no label."""
    fields = {name: value.to(device) for name, value in item.items() if isinstance(value, Tensor)}
    if "input_ids" not in fields or fields["input_ids"].ndim != 2:
        raise ValueError("a batch has input_ids of two dimensions, rows and tokens (and attention_mask, labels)")
    ids = fields["input_ids"]
    real = fields.get("attention_mask", torch.ones_like(ids)).bool()
    labels = fields.get("labels", ids).masked_fill(~real, -100)
    position = fields.get("position_ids", real.long().cumsum(-1).sub(1).clamp_min(0))
    return {"input_ids": ids, "labels": labels, "position_ids": position.expand_as(ids)}
