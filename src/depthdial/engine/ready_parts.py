"""Small networks of a step as Python calls them in the midst of a native pass, for a few tokens at a time: in numpy,
where an operation on so few numbers costs a third of what torch takes to begin it.

What they compute is what their modules say; weights are copied, as the kernels' are, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depthdial.core import ops
from depthdial.core.layers import Adapter, LinearRouter, Router, plain
from depthdial.core.method import Parts

Array = np.ndarray
ACTS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "sigmoid": lambda code: 1 / (1 + np.exp(-code)),
    "silu": lambda code: code / (1 + np.exp(-code)),
    "relu": lambda code: np.maximum(code, 0),
    "gelu": lambda code: nn.functional.gelu(torch.from_numpy(code)).numpy(),
}


def ready(parts: Parts, dtype: torch.dtype) -> Mapping[str, Any]:
    """The parts of one step on a CPU, to be called with inputs of a dtype; those of other kinds stay as they are."""
    return {name: _ready(part, dtype) for name, part in parts.items()}


def _ready(part: nn.Module, dtype: torch.dtype) -> Any:
    if isinstance(part, Adapter) and all(map(plain, part.children())):
        return _Bypass(part, dtype)
    if isinstance(part, Router | LinearRouter):
        try:
            return _Number(part, part.ops, dtype)
        except ValueError:  # it holds a foreign layer
            pass
    return part


class _Number:
    """A part that says itself in operations."""

    def __init__(self, part: nn.Module, each: tuple[ops.Op, ...], dtype: torch.dtype):
        first, *later = each
        assert isinstance(first, ops.Dense)
        self._part, self._wide = part, first.wide or dtype == torch.float32
        self._first = _array(first.weight if first.wide else first.weight.to(dtype)).T
        self._bias, self._dtype = None if first.bias is None else _array(first.bias), dtype
        self._later = [_operation(op) for op in later]

    def __call__(self, x: Tensor) -> Tensor:
        """x: T [N, d] -> fp32 [N]."""
        code = x.float().numpy() @ self._first
        if self._bias is not None:
            code += self._bias
        if not self._wide:
            code = torch.from_numpy(code).to(self._dtype).float().numpy()
        for operation in self._later:
            code = operation(code)
        return torch.from_numpy(code[:, 0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class _Bypass:
    """An adapter."""

    def __init__(self, part: Adapter, dtype: torch.dtype):
        self._part, self._width = part, part.gate.out_features
        self._open = torch.cat([part.gate.weight, part.up.weight]).detach().to(dtype).float()
        self._down = part.down.weight.detach().to(dtype).float()

    def __call__(self, x: Tensor) -> Tensor:
        """x: T [N, d] -> T [N, d], rounded where the module's maps round."""
        gate, up = nn.functional.linear(x.float(), self._open).to(x.dtype).split(self._width, -1)
        opened = nn.functional.silu(gate) * up
        return nn.functional.linear(opened.float(), self._down).to(x.dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def _operation(op: ops.Op) -> Callable[[Array], Array]:
    if isinstance(op, ops.Act):
        return ACTS[op.name]
    assert not isinstance(op, ops.Look)
    weight = _array(op.weight)
    if isinstance(op, ops.Norm):
        eps, size = np.float32(op.eps), np.float32(len(weight))
        return lambda code: code * (weight / np.sqrt(np.einsum("ij,ij->i", code, code)[:, None] / size + eps))
    bias = np.float32(0) if op.bias is None else _array(op.bias)
    return lambda code: code @ weight.T + bias


def _array(weight: Tensor) -> Array:
    return weight.detach().float().contiguous().numpy()
