"""The forward of a layer in torch, for some tokens, on any device and with gradients where they are asked for.

It is what serving's torch runner, training with gathered rows, and the definition of the kernels have in common. This
file is *not* about which tokens run, nor where their keys lie: whoever calls it brings attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.kernels.tensors import Activation, LayerTensors, Linear, Norm, Pairs, Rope

Multiply = Callable[[Tensor, Linear], Tensor]
"""x: T [n, in] -> T [n, out]."""
Attend = Callable[[Tensor], Tensor]
"""Queries T [n, heads, hd], turned -> T [n, heads * hd], of the same tokens."""
Angles = tuple[Tensor, Tensor]
"""cos and sin, [N, 1, r / 2], of the places of all tokens of a pass: the first r numbers of a head are turned."""


class Forward:
    """One visit of a layer. Of N tokens, `rows` (int64 [n]; None: all) names those that tensors [n, ...] are of."""

    def __init__(self, layer: LayerTensors, angles: Angles, multiply: Multiply, query_scale: Tensor | None = None):
        """query_scale: T [N], on the queries of all tokens; None: 1."""
        self.layer, self.angles, self.multiply, self.query_scale = layer, angles, multiply, query_scale

    def taken(self, x: Tensor, unit: str) -> Tensor:
        """What attention or the MLP ("mlp") takes of the stream, T [n, d]."""
        return x if self.layer.bare else normed(x, self._before(unit))

    def shown(self, z: Tensor, unit: str) -> Tensor:
        """What a method sees of what a unit takes, T [n, d]."""
        return normed(z, self._before(unit)) if self.layer.bare else z

    def keys(self, z: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """K and V, T [n, kv_heads, hd] each, of what attention takes, z: T [n, d]."""
        layer = self.layer
        k = self._heads(z, layer.k, layer.kv_heads, layer.k_norm, rows)
        return k, self.multiply(z, layer.v).unflatten(-1, (layer.kv_heads, -1))

    def attention(self, z: Tensor, rows: Tensor | None, attend: Attend, count: int | None = None) -> Tensor:
        """Attention's update of the first `count` tokens (None: all; the others only fill up), T [count, d]."""
        layer, scale = self.layer, self.query_scale
        q = self._heads(z, layer.q, layer.heads, layer.q_norm, rows)
        if scale is not None:
            q = q * (scale if rows is None else scale[rows])[:, None, None]
        seen = attend(q[:count])
        if len(seen) < len(q):
            seen = F.pad(seen, (0, 0, 0, len(q) - len(seen)))
        return scaled(normed(self.multiply(seen, layer.o)[:count], layer.after_attn), layer.residual)

    def mlp(self, u: Tensor, count: int | None = None) -> Tensor:
        """The MLP's update of the first `count` tokens, T [count, d]; u: T [n, d], what it takes of them."""
        layer = self.layer
        if layer.experts is not None:
            update = layer.experts(u[:count])
        else:
            opened = activated(self.multiply(u, layer.gate), layer.activation)
            opened = opened if layer.up is None else opened * self.multiply(u, layer.up)
            update = self.multiply(opened, layer.down)[:count]
        return scaled(normed(update, layer.after_mlp), layer.residual)

    def whole(self, x: Tensor, z: Tensor, rows: Tensor | None, attend: Attend) -> Tensor:
        """The layer's output of the tokens that x, T [n, d], is the input of. z: T [n, d] or more rows that fill up."""
        h = x + self.attention(z, rows, attend, len(x))
        return h + self.mlp(self.taken(h, "mlp"))

    def _before(self, unit: str) -> Norm:
        return self.layer.before_mlp if unit == "mlp" else self.layer.before_attn

    def _heads(self, z: Tensor, of: Linear, heads: int, norm: Norm | None, rows: Tensor | None) -> Tensor:
        """Heads of q or k, normed and turned by the tokens' places."""
        x, layer = self.multiply(z, of), self.layer
        if norm is not None and norm.weight.numel() == x.shape[-1] and not layer.norms_turned:  # all heads at once
            x, norm = normed(x, norm), None
        x, (cos, sin) = x.unflatten(-1, (heads, -1)), (t if rows is None else t[rows] for t in self.angles)
        if layer.norms_turned:
            return normed(turned(x, cos, sin, layer.pairs), norm)
        return turned(normed(x, norm), cos, sin, layer.pairs)


def turned(x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs = "halves") -> Tensor:
    """x: T [n, heads, hd] with its first r numbers turned by cos and sin, [n, 1, r / 2]."""
    r, neighbours = 2 * cos.shape[-1], pairs == "neighbours"
    first, second = (x[..., 0:r:2], x[..., 1:r:2]) if neighbours else x[..., :r].chunk(2, -1)
    each = first * cos - second * sin, second * cos + first * sin
    part = (torch.stack(each, -1).flatten(-2) if neighbours else torch.cat(each, -1)).to(x.dtype)
    return torch.cat((part, x[..., r:]), -1) if r < x.shape[-1] else part


def activated(x: Tensor, activation: Activation) -> Tensor:
    if activation == "relu2":
        return F.relu(x).square()
    return F.silu(x) if activation == "silu" else F.gelu(x, approximate="tanh")


def capped(x: Tensor, softcap: float | None) -> Tensor:
    return x if softcap is None else torch.tanh(x / softcap) * softcap


def scaled(x: Tensor, by: float) -> Tensor:
    return x if by == 1.0 else x * by


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool = False, once: bool = False) -> Tensor:
    """x: T [..., d] -> T [..., d], in fp32, rounded as Hugging Face does; see `Norm`."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if plus_one or once:
        return (wide * (weight.float() + plus_one)).to(x.dtype)
    return weight.to(x.dtype) * wide.to(x.dtype)


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, *norm)


def angles_of(positions: Tensor, rope: Rope, dtype: torch.dtype, inv_freq: Tensor | None = None) -> Angles:
    """Of each token's place. positions: int [N]; inv_freq: fp32 [N, r / 2], of each; None: the rope's."""
    angle = positions.float()[:, None] * (rope.inv_freq if inv_freq is None else inv_freq)
    dtype = torch.float32 if rope.exact else dtype
    return (angle.cos() * rope.scaling).to(dtype)[:, None], (angle.sin() * rope.scaling).to(dtype)[:, None]
