"""Optimizers: AdamW, or for pre-training Adafactor, as in the SkipLayer paper."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from depthdial.core.layers import Part
from depthdial.train.config import TrainConfig
from depthdial.train.pretrain_config import PretrainConfig


def deciding(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of routers: of the parts that run for all tokens, to decide on them."""
    for part in model.modules():
        if isinstance(part, Part) and part.runs_for == "all":
            yield from part.parameters()


def optimizer_for(model: nn.Module, config: TrainConfig | PretrainConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices only: not on norms, biases or anything else of one dimension. Routers may learn at
    another rate."""
    routers = {id(p) for p in deciding(model)}
    by_rate: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = config.lr * (config.router_lr if id(parameter) in routers else 1.0)
            by_rate.setdefault((rate, config.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    groups = [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in by_rate.items()]
    if isinstance(config, PretrainConfig) and config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
