"""The small networks that methods share. Each says when it runs (`runs_for`) and what it costs (`macs`).

Their layers may be others than they were made with: with a LoRA, quantised, or with weights that a hook brings when
they are called. Those are called as modules; only a plain layer's weight is read directly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import NoneType
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdial.core.ops import Act, Dense, Norm, Op

WEIGHTS: tuple[type[Tensor], ...] = (nn.Parameter, Tensor)
"""Types of tensors that hold their own numbers."""


def plain(module: nn.Module, but: type = NoneType) -> bool:
    """Is it torch's own linear layer or norm, so that its weight alone says what it does? Not one with hooks (beside
    those of the type `but`), with a forward of another's, or with a weight of another tensor type."""
    return (
        type(module) in (nn.Linear, nn.RMSNorm)
        and type(module.weight) in WEIGHTS
        and "forward" not in module.__dict__
        and all(isinstance(hook, but) for hook in module._forward_hooks.values())
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
    )


class Part(nn.Module, ABC):
    """A trainable piece beside a frozen unit. Weights may be kept in fp32 while activations are bf16."""

    runs_for: ClassVar[Literal["all", "skipped", "merged"]]
    """For all tokens, to decide on them; for skipped ones; or for none, since it is merged into its step's weights."""
    start: float | None = None
    """Of a part whose output is a logit with a bias: the mean of the logits that it gives before it has learned."""

    def shift(self, offset: float) -> None:
        """Add `offset` for good to the logits that it gives, where it has a bias for that."""

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates per token, folded as far as inference allows."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Set all weights to fresh ones, as the constructor does."""


class Router(Part):
    """FlexiDepth's gate (arXiv 2503.23798, released code): head(dec(tanh(RMSNorm(enc(z))))), d -> d/ratio -> d -> 1.

    No non-linearity stands between dec and head, so they are folded into one vector. `bias` is ours (0 in the released
    form): it lets training start from "runs everything". fixed: it is fed ones in place of its input (a control), and
    is a number then that costs nothing.
    """

    runs_for = "all"

    def __init__(
        self, dim: int, ratio: int, eps: float, order: str = "norm_tanh", start: float = 0.0, fixed: bool = False
    ):
        super().__init__()
        if order not in ("norm_tanh", "tanh_norm"):
            raise ValueError(f"unknown router order {order!r}; choose norm_tanh (released code) or tanh_norm (paper)")
        self.order, self.start, self.fixed = order, float(start), fixed
        rank = max(1, dim // ratio)
        self.enc = nn.Linear(dim, rank, bias=False)
        self.norm = nn.RMSNorm(rank, eps=eps)
        self.dec = nn.Linear(rank, dim, bias=False)
        self.head = nn.Linear(dim, 1, bias=False)
        self.bias = nn.Parameter(torch.full((), self.start))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        dim, rank = self.enc.in_features, self.enc.out_features
        nn.init.normal_(self.enc.weight, std=dim**-0.5)
        nn.init.normal_(self.dec.weight, std=rank**-0.5)
        # logits start about 1 apart: closer together, one step of training flips most decisions (docs/log.md)
        nn.init.normal_(self.head.weight, std=1.6 * dim**-0.5)
        nn.init.ones_(self.norm.weight)
        nn.init.constant_(self.bias, self.start or 0.0)

    def shift(self, offset: float) -> None:
        self.bias.data += offset

    def forward(self, x: Tensor, folded: Tensor | None = None) -> Tensor:
        """x: [..., d] -> logit, fp32 [...]. folded: `self.folded`, where weights stay as they are."""
        if self.fixed:
            return self._logit(_ones(x), folded).expand(x.shape[:-1])
        return self._logit(x, folded)

    def _logit(self, x: Tensor, folded: Tensor | None) -> Tensor:
        code = _product(self.enc, x).float()
        code = self._normed(code).tanh() if self.order == "norm_tanh" else self._normed(code.tanh())
        if folded is None and not (_linear(self.dec) and _linear(self.head)):
            logit = _product(self.head, _product(self.dec, code))
        else:
            logit = F.linear(code, self._folded(code.device) if folded is None else folded)
        return logit.squeeze(-1) + self.bias.float()

    def _normed(self, code: Tensor) -> Tensor:
        if not plain(self.norm):
            return self.norm(code).float()
        scale = self.norm.weight.float()
        return F.rms_norm(code, scale.shape, scale, self.norm.eps)

    @property
    def folded(self) -> Tensor:
        """fp32 [1, rank]: head and dec as one map. ValueError where one of them is no longer a linear layer alone."""
        return self._folded(self.bias.device)

    def _folded(self, device: torch.device) -> Tensor:
        return _weight(self.head, device) @ _weight(self.dec, device)

    @property
    def ops(self) -> tuple[Op, ...]:
        """The same in operations. ValueError as `folded`, and where a layer is not torch's own alone."""
        if self.fixed:
            return _number(self, self.enc)
        _check_plain(self)
        norm, tanh = Norm(self.norm.weight.detach().float(), self.norm.eps or 0.0), Act("tanh")
        middle = (norm, tanh) if self.order == "norm_tanh" else (tanh, norm)
        return Dense(self.enc.weight.detach()), *middle, Dense(self.folded.detach(), self.bias.detach().float()[None])

    @property
    def macs(self) -> int:
        return 0 if self.fixed else self.enc.in_features * self.enc.out_features + self.enc.out_features


class LinearRouter(Part):
    """A linear gate without bias: d -> 2 classes, "run" against "skip", or d -> 1 score; evaluated in fp32.

    Of two classes only the difference of their logits counts, so at inference both are one vector. fixed: as a
    `Router`'s; spread: how far apart its first logits are, about, where the input is normed.
    """

    runs_for = "all"

    def __init__(self, dim: int, classes: int = 2, fixed: bool = False, spread: float = 1.0):
        super().__init__()
        self.fixed, self.spread = fixed, spread
        self.head = nn.Linear(dim, classes, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.head.weight, std=self.spread * self.head.in_features**-0.5)

    def forward(self, x: Tensor, folded: Tensor | None = None) -> Tensor:
        """x: [..., d] -> logit, fp32 [...]. folded: `self.folded`, where weights stay as they are."""
        if self.fixed:
            return self._logit(_ones(x), folded).expand(x.shape[:-1])
        return self._logit(x.float(), folded)

    def _logit(self, x: Tensor, folded: Tensor | None) -> Tensor:
        if folded is None and not _linear(self.head):
            logits = _product(self.head, x)
            return logits[..., 0] - logits[..., 1] if logits.shape[-1] == 2 else logits[..., 0]
        return (x * (self._folded(x.device) if folded is None else folded)).sum(-1)

    @property
    def folded(self) -> Tensor:
        """fp32 [d]: what the input is multiplied with. ValueError where `head` is no longer a linear layer alone."""
        return self._folded(self.head.weight.device)

    def _folded(self, device: torch.device) -> Tensor:
        weight = _weight(self.head, device)
        return weight[0] - weight[1] if len(weight) == 2 else weight[0]

    @property
    def ops(self) -> tuple[Op, ...]:
        """The same in operations; errors as of `Router.ops`."""
        if self.fixed:
            return _number(self, self.head)
        _check_plain(self)
        return (Dense(self.folded.detach()[None], wide=True),)

    @property
    def macs(self) -> int:
        return 0 if self.fixed else self.head.in_features


class Adapter(Part):
    """FlexiDepth's bypass: out(SiLU(gate(u)) * in(u)), d -> d_ff/ratio -> d, no bias. Starts at zero."""

    runs_for = "skipped"

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.gate = nn.Linear(dim, width, bias=False)
        self.up = nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        dim = self.gate.in_features
        nn.init.normal_(self.gate.weight, std=dim**-0.5)
        nn.init.normal_(self.up.weight, std=dim**-0.5)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., d] -> [..., d]."""
        return _product(self.down, F.silu(_product(self.gate, x)) * _product(self.up, x))

    @property
    def macs(self) -> int:
        return 3 * self.gate.in_features * self.gate.out_features


class LoRA(Part):
    """A low-rank change of one linear map: weight + up down. Starts at zero.

    It costs nothing at inference, where it is merged into a copy of the weight for the one step that it belongs to.
    """

    runs_for = "merged"

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.empty(outputs, rank))
        self.reset_parameters()

    @property
    def macs(self) -> int:
        return 0

    def reset_parameters(self) -> None:
        nn.init.normal_(self.down, std=self.down.shape[1] ** -0.5)
        nn.init.zeros_(self.up)


@torch.no_grad()
def _number(router: nn.Module, first: nn.Linear) -> tuple[Op, ...]:
    """A fixed router is the same number for every token."""
    inputs = first.in_features
    device = first.weight.device
    logit = router(torch.ones(1, inputs, device=device))
    return (Dense(torch.zeros(1, inputs, device=device), logit.float()),)


def _check_plain(part: nn.Module) -> None:
    if not all(plain(layer) for layer in part.children()):
        raise ValueError("its routers or adapters hold a LoRA or another foreign layer; merge it (merge_and_unload)")


def _ones(x: Tensor) -> Tensor:
    """What a fixed router is fed: fp32 [1, d], whatever x is."""
    return torch.ones(1, x.shape[-1], device=x.device)


def _linear(module: nn.Module) -> bool:
    """Is it torch's linear layer, if with hooks? Then `_weight` is all of it."""
    return type(module) is nn.Linear


def _product(linear: nn.Module, x: Tensor) -> Tensor:
    """The layer's output in x's dtype: in it where the layer is plain, else in that of the layer's own weights."""
    if plain(linear):
        assert isinstance(linear.weight, Tensor)
        return F.linear(x, linear.weight.to(x.dtype))
    # quantised layers have no parameter and take fp32
    own = next((weight.dtype for weight in linear.parameters() if weight.is_floating_point()), torch.float32)
    return linear(x.to(own)).to(x.dtype)


def _weight(linear: nn.Module, device: torch.device) -> Tensor:
    """fp32 [out, in] of torch's linear layer; of one with hooks exactly what it multiplies with. ValueError for others.

    device: where the layer's input is."""
    if not isinstance(linear, nn.Linear) or not _linear(linear):
        raise ValueError(f"a {type(linear).__name__} in a router cannot be folded; merge or remove the adapter first")
    if plain(linear):
        return linear.weight.float()
    return linear(torch.eye(linear.in_features, dtype=linear.weight.dtype, device=device)).float().T.contiguous()
