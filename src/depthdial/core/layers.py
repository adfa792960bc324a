"""The small networks that methods share. Each says when it runs (`runs_for`) and what it costs (`macs`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Part(nn.Module, ABC):
    """A trainable piece beside a frozen unit. Weights may be kept in fp32 while activations are bf16."""

    runs_for: ClassVar[Literal["all", "skipped"]]

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates per token, folded as far as inference allows."""


class Router(Part):
    """FlexiDepth's gate (arXiv 2503.23798, released code): head(dec(tanh(RMSNorm(enc(z))))), d -> d/ratio -> d -> 1.

    No non-linearity stands between dec and head, so they are folded into one vector. `bias` is ours (0 in the released
    form): it lets training start from "runs everything".
    """

    runs_for = "all"

    def __init__(self, dim: int, ratio: int, eps: float, order: str = "norm_tanh", start: float = 0.0):
        super().__init__()
        if order not in ("norm_tanh", "tanh_norm"):
            raise ValueError(f"unknown router order {order!r}; choose norm_tanh (released code) or tanh_norm (paper)")
        self.order = order
        rank = max(1, dim // ratio)
        self.enc = nn.Linear(dim, rank, bias=False)
        self.norm = nn.RMSNorm(rank, eps=eps)
        self.dec = nn.Linear(rank, dim, bias=False)
        self.head = nn.Linear(dim, 1, bias=False)
        self.bias = nn.Parameter(torch.full((), float(start)))
        nn.init.normal_(self.enc.weight, std=dim**-0.5)
        nn.init.normal_(self.dec.weight, std=rank**-0.5)
        # logits start about 1 apart: closer together, one step of training flips most decisions (docs/log.md)
        nn.init.normal_(self.head.weight, std=1.6 * dim**-0.5)

    def forward(self, x: Tensor, folded: Tensor | None = None) -> Tensor:
        """x: [B, T, d] -> logit, fp32 [B, T]. folded: `self.folded`, where weights stay as they are."""
        code = F.linear(x, self.enc.weight.to(x.dtype)).float()
        scale = self.norm.weight.float()
        if self.order == "norm_tanh":
            code = F.rms_norm(code, scale.shape, scale, self.norm.eps).tanh()
        else:
            code = F.rms_norm(code.tanh(), scale.shape, scale, self.norm.eps)
        return F.linear(code, self.folded if folded is None else folded).squeeze(-1) + self.bias.float()

    @property
    def folded(self) -> Tensor:
        """fp32 [1, rank]: head and dec as one map."""
        return self.head.weight.float() @ self.dec.weight.float()

    @property
    def macs(self) -> int:
        return self.enc.weight.numel() + self.enc.out_features


class LinearRouter(Part):
    """A linear gate without bias: d -> 2 classes, "run" against "skip", or d -> 1 score; evaluated in fp32.

    Of two classes only the difference of their logits counts, so at inference both are one vector.
    """

    runs_for = "all"

    def __init__(self, dim: int, classes: int = 2):
        super().__init__()
        self.head = nn.Linear(dim, classes, bias=False)
        nn.init.normal_(self.head.weight, std=dim**-0.5)  # logits about 1 apart where the input is normed

    def forward(self, x: Tensor, folded: Tensor | None = None) -> Tensor:
        """x: [B, T, d] -> logit, fp32 [B, T]. folded: `self.folded`, where weights stay as they are."""
        return (x.float() * (self.folded if folded is None else folded)).sum(-1)

    @property
    def folded(self) -> Tensor:
        """fp32 [d]: what the input is multiplied with."""
        weight = self.head.weight.float()
        return weight[0] - weight[1] if len(weight) == 2 else weight[0]

    @property
    def macs(self) -> int:
        return self.head.in_features


class Adapter(Part):
    """FlexiDepth's bypass: out(SiLU(gate(u)) * in(u)), d -> d_ff/ratio -> d, no bias. Starts at zero."""

    runs_for = "skipped"

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.gate = nn.Linear(dim, width, bias=False)
        self.up = nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.gate.weight, std=dim**-0.5)
        nn.init.normal_(self.up.weight, std=dim**-0.5)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d] -> [B, T, d]."""
        gate, up, down = (w.weight.to(x.dtype) for w in (self.gate, self.up, self.down))
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    @property
    def macs(self) -> int:
        return 3 * self.gate.weight.numel()
