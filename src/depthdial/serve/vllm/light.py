"""Small steps of a layer by vLLM's own kernels. On a CPU vLLM leaves them to its compiler, which an eager model never
meets: norm, rotation and activation took a sixth of the matrices' time together (8 texts, a billion parameters).
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.model_executor.layers.layernorm import RMSNorm

from vllm import _custom_ops as ops


class Norm(RMSNorm):
    """vLLM's, one kernel everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., d], contiguous."""
        if not x.is_cpu:
            return super().forward(x)
        out = torch.empty_like(x)
        ops.rms_norm(out, x, self.weight.data, self.variance_epsilon)
        return out


def rotate(rope: Any, positions: Tensor, q: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """q and k turned by their places, maybe in place. positions: int64 [n]; q, k: [n, heads * hd], contiguous."""
    return rope.forward_cpu(positions, q, k) if q.is_cpu else rope(positions, q, k)


def silu_and_mul(x: Tensor) -> Tensor:
    """silu(a) * b of x = [a, b]: [n, 2 w] -> [n, w]."""
    gate, up = x.chunk(2, dim=-1)
    if x.is_cpu:  # vLLM's kernel takes twice as long
        return F.silu(gate) * up
    out = x.new_empty(gate.shape)
    torch.ops._C.silu_and_mul(out, x)
    return out
