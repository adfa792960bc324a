"""The forward of a layer in torch, for some tokens, on any device and with gradients where they are asked for.

It is what serving's torch runner, training with gathered rows, and the definition of the kernels have in common. This
file is *not* about which tokens run, nor where their keys lie: whoever calls it brings attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.kernels.tensors import LayerTensors, Linear, Norm, Rope

Multiply = Callable[[Tensor, Linear], Tensor]
"""x: T [n, in] -> T [n, out]."""
Attend = Callable[[Tensor], Tensor]
"""Queries T [n, heads, hd], turned -> T [n, heads * hd], of the same tokens."""
Angles = tuple[Tensor, Tensor]
"""cos and sin, T [N, 1, hd], of the places of all tokens of a pass."""


class Forward:
    """One visit of a layer. Of N tokens, `rows` (int64 [n]; None: all) names those that tensors [n, ...] are of."""

    def __init__(self, layer: LayerTensors, angles: Angles, multiply: Multiply):
        self.layer, self.angles, self.multiply = layer, angles, multiply

    def keys(self, z: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """K and V, T [n, kv_heads, hd] each, of the layer's normed input z: T [n, d]."""
        layer = self.layer
        k = self._turned(self._heads(z, layer.k, layer.kv_heads, layer.k_norm), rows)
        return k, self._heads(z, layer.v, layer.kv_heads, None)

    def attention(self, z: Tensor, rows: Tensor | None, attend: Attend, count: int | None = None) -> Tensor:
        """Attention's update of the first `count` tokens (None: all; the others only fill up), T [count, d]."""
        layer = self.layer
        q = self._turned(self._heads(z, layer.q, layer.heads, layer.q_norm), rows)
        seen = attend(q[:count])
        if len(seen) < len(q):
            seen = F.pad(seen, (0, 0, 0, len(q) - len(seen)))
        return normed(self.multiply(seen, layer.o)[:count], layer.after_attn)

    def mlp(self, u: Tensor, count: int | None = None) -> Tensor:
        """The MLP's update of the first `count` tokens, T [count, d]; u: T [n, d], their normed input."""
        layer = self.layer
        opened = self.multiply(u, layer.gate)
        opened = F.silu(opened) if layer.activation == "silu" else F.gelu(opened, approximate="tanh")
        return normed(self.multiply(opened * self.multiply(u, layer.up), layer.down)[:count], layer.after_mlp)

    def whole(self, x: Tensor, z: Tensor, rows: Tensor | None, attend: Attend) -> Tensor:
        """The layer's output of the tokens that x, T [n, d], is the input of. z: T [n, d] or more rows that fill up."""
        h = x + self.attention(z, rows, attend, len(x))
        return h + self.mlp(normed(h, self.layer.before_mlp))

    def _heads(self, z: Tensor, projection: Linear, heads: int, norm: Norm | None) -> Tensor:
        return normed(self.multiply(z, projection).unflatten(-1, (heads, -1)), norm)

    def _turned(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """By the tokens' places; the two halves of a head are pairs."""
        cos, sin = (t if rows is None else t[rows] for t in self.angles)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool = False) -> Tensor:
    """x: T [..., d] -> T [..., d], in fp32, rounded as Hugging Face does. plus_one: Gemma's (1 + weight), multiplied
    before rounding."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if plus_one:
        return (scaled * (1.0 + weight.float())).to(x.dtype)
    return weight.to(x.dtype) * scaled.to(x.dtype)


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, *norm)


def angles_of(positions: Tensor, rope: Rope, dtype: torch.dtype) -> Angles:
    """Of each token's place. positions: int [N]."""
    angle = positions.float()[:, None] * rope.inv_freq
    cos, sin = ((f(angle) * rope.scaling).to(dtype).repeat(1, 2)[:, None] for f in (torch.cos, torch.sin))
    return cos, sin
