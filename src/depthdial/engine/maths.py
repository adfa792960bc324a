"""What the weights of a model make of some tokens, in torch, with the bytes of weights that are read counted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.engine.stats import Stats
from depthdial.engine.weights import first_rows, look_up, multiply, size_of
from depthdial.kernels.reference import rms_norm
from depthdial.kernels.tensors import LayerTensors, Linear, ModelTensors, Norm, Rope, Weight


class Maths:
    """spine: of the model; stats: where bytes are counted."""

    def __init__(self, spine: ModelTensors, stats: Stats):
        self.spine, self._stats = spine, stats
        self._angles: dict[str, tuple[Tensor, Tensor]] = {}

    def begin(self, ids: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """A pass over N tokens: their embeddings, T [N, d]. ids: int64 [N]; positions: int [N]."""
        self._angles = {kind: _angles(positions, rope, dtype) for kind, rope in self.spine.ropes.items()}
        x = look_up(ids, self.spine.embed, dtype)
        self._stats.weight_bytes += x.numel() * x.element_size()
        return x if self.spine.embed_scale == 1.0 else x * self.spine.embed_scale

    def queries(self, z: Tensor, rows: Tensor | None, block: LayerTensors) -> Tensor:
        """z: T [n, d] of the tokens `rows` (int64 [n]; None: all) -> T [n, heads, hd]."""
        return self._turned(self._heads(z, block.q, block.heads, block.q_norm), rows, block)

    def keys(self, z: Tensor, rows: Tensor | None, block: LayerTensors) -> tuple[Tensor, Tensor]:
        """K and V, T [n, kv_heads, hd] each; see `queries`."""
        k = self._turned(self._heads(z, block.k, block.kv_heads, block.k_norm), rows, block)
        return k, self._heads(z, block.v, block.kv_heads, None)

    def output(self, seen: Tensor, count: int, block: LayerTensors) -> Tensor:
        """Attention's update of the first `count` tokens, T [count, d]; seen: T [n, heads * hd]."""
        return normed(self.linear(seen, block.o)[:count], block.after_attn)

    def mlp(self, u: Tensor, count: int, block: LayerTensors) -> Tensor:
        """The MLP's update of the first `count` tokens, T [count, d]; u: T [n, d], their normed input, maybe padded."""
        opened = self.linear(u, block.gate)
        opened = F.silu(opened) if block.activation == "silu" else F.gelu(opened, approximate="tanh")
        return normed(self.linear(opened * self.linear(u, block.up), block.down)[:count], block.after_mlp)

    def logits(self, x: Tensor, rows: int | None = None) -> Tensor:
        """What the head says of states T [n, d]: T [n, V], or of its first `rows` alone."""
        spine, weight = self.spine, first_rows(self.spine.head, rows)
        logits = multiply(normed(x, spine.norm), weight)
        self._count(weight)
        return logits if spine.softcap is None else torch.tanh(logits / spine.softcap) * spine.softcap

    def linear(self, x: Tensor, of: Linear) -> Tensor:
        self._count(of.weight)
        return multiply(x, *of)

    def _heads(self, z: Tensor, projection: Linear, heads: int, norm: Norm | None) -> Tensor:
        return normed(self.linear(z, projection).unflatten(-1, (heads, -1)), norm)

    def _turned(self, x: Tensor, rows: Tensor | None, block: LayerTensors) -> Tensor:
        """By the tokens' places; the two halves of a head are pairs."""
        cos, sin = (t if rows is None else t[rows] for t in self._angles[block.rope])
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def _count(self, weight: Weight) -> None:
        self._stats.weight_bytes += size_of(weight)


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, *norm)


def _angles(positions: Tensor, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, hd] of each token's place."""
    angle = positions.float()[:, None] * rope.inv_freq
    return tuple((f(angle) * rope.scaling).to(dtype).repeat(1, 2)[:, None] for f in (torch.cos, torch.sin))  # pyright: ignore[reportReturnType]
