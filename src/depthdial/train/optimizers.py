"""Optimizers for pre-training, by name: AdamW, or Adafactor as in the SkipLayer paper."""

from __future__ import annotations

import torch
from torch import nn

from depthdial.train.pretrain_config import PretrainConfig


def optimizer_for(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices only: not on norms, biases or anything else of one dimension."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
