"""Optimizers by name: both lower a loss, and decay is for matrices alone."""

from __future__ import annotations

import pytest
import torch

from depthdial.core.method import Method
from depthdial.methods import MixtureOfDepths, SkipLayer
from depthdial.models.scratch import Spec, fresh
from depthdial.train.optimizers import optimizer_for
from depthdial.train.pretrain_config import PretrainConfig


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_few_steps_lower_the_loss(name):
    model = fresh(Spec.parse("2x2@16,ffn=32,vocab=50"), SkipLayer())
    config = PretrainConfig(data=("x",), output="", size="", optimizer=name, lr=1e-2 if name == "adamw" else 0.2)
    optimizer = optimizer_for(model, config)
    decay = {p.ndim > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {True: config.weight_decay, False: 0.0}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    ids, losses = torch.arange(24).view(2, 12), []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("method", [SkipLayer(), MixtureOfDepths()], ids=lambda method: type(method).__name__)
def test_routers_learn_at_a_rate_of_their_own(method: Method):
    model = fresh(Spec.parse("2x2@16,ffn=32,vocab=50"), method)
    optimizer = optimizer_for(model, PretrainConfig(data=("x",), output="", size="", lr=1e-2, router_lr=0.1))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-3 if ".parts." in name else 1e-2), name
    with pytest.raises(ValueError, match="must be positive"):
        PretrainConfig(data=("x",), output="", size="", router_lr=0.0)
