"""What a family makes of the products of its LM head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from depthdial.models.family import declared


class Shaping(NamedTuple):
    """Logits from products: x = scale * product, and softcap * tanh(x / softcap) of that where there is a cap."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, products: Tensor) -> Tensor:
        """Of any shape, in its dtype."""
        x = products if self.scale == 1.0 else products * self.scale
        return x if self.softcap is None else torch.tanh(x / self.softcap) * self.softcap

    def back(self, grad: Tensor, logits: Tensor) -> Tensor:
        """The gradient of the products from that of the logits."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap).square())
        return grad if self.scale == 1.0 else grad * self.scale


PLAIN = Shaping()


def shaping_of(config: PretrainedConfig) -> Shaping:
    """Of a model's configuration."""
    return Shaping(1.0 / declared(config, "logits_scaling", 1.0), declared(config, "final_logit_softcapping"))
