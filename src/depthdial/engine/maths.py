"""What the weights of a model make of some tokens, in torch, with the bytes of weights that are read counted."""

from __future__ import annotations

import torch
from torch import Tensor

from depthdial.engine.stats import Stats
from depthdial.engine.weights import first_rows, look_up, multiply, size_of
from depthdial.kernels.reference import activated, angles, capped, heads_of, rms_norm
from depthdial.kernels.tensors import LayerTensors, Linear, ModelTensors, Norm, Weight


class Maths:
    """spine: of the model; stats: where bytes are counted."""

    def __init__(self, spine: ModelTensors, stats: Stats):
        self.spine, self._stats = spine, stats
        self._angles: dict[str, tuple[Tensor, Tensor]] = {}
        self._query_scale: Tensor | None = None

    def begin(self, ids: Tensor, positions: Tensor, dtype: torch.dtype, lengths: Tensor) -> Tensor:
        """A pass over N tokens: their embeddings, T [N, d]. ids: int64 [N]; positions: int [N]; lengths: int64 [2, N],
        see `Rope.stretch`."""
        spine, inv_freq = self.spine, self.spine.frequencies(lengths)
        self._angles = {
            kind: angles(positions, rope.inv_freq if inv_freq is None else inv_freq[:, i], rope.scaling,
                         torch.float32 if rope.exact else dtype)
            for i, (kind, rope) in enumerate(spine.ropes.items())
        }  # fmt: skip
        scale = spine.query_scale
        self._query_scale = None if scale is None else scale(positions).to(dtype)[:, None, None]
        x = look_up(ids, self.spine.embed, dtype)
        self._stats.weight_bytes += x.numel() * x.element_size()
        return x if self.spine.embed_scale == 1.0 else x * self.spine.embed_scale

    def queries(self, z: Tensor, rows: Tensor | None, block: LayerTensors) -> Tensor:
        """z: T [n, d] of the tokens `rows` (int64 [n]; None: all) -> T [n, heads, hd]."""
        q, scale = self._turned(z, block.q, block.heads, block.q_norm, rows, block), self._query_scale
        return q if scale is None else q * (scale if rows is None else scale[rows])

    def keys(self, z: Tensor, rows: Tensor | None, block: LayerTensors) -> tuple[Tensor, Tensor]:
        """K and V, T [n, kv_heads, hd] each; see `queries`."""
        k = self._turned(z, block.k, block.kv_heads, block.k_norm, rows, block)
        return k, self.linear(z, block.v).unflatten(-1, (block.kv_heads, -1))

    def output(self, seen: Tensor, count: int, block: LayerTensors) -> Tensor:
        """Attention's update of the first `count` tokens, T [count, d]; seen: T [n, heads * hd]."""
        return scaled(normed(self.linear(seen, block.o)[:count], block.after_attn), block.residual)

    def mlp(self, u: Tensor, count: int, block: LayerTensors) -> Tensor:
        """The MLP's update of the first `count` tokens, T [count, d]; u: T [n, d], their normed input, maybe padded."""
        if block.experts is not None:
            update, chosen = block.experts.run(u[:count])
            self._stats.weight_bytes += block.experts.router_bytes + len(chosen.unique()) * block.experts.each_bytes
        else:
            opened = activated(self.linear(u, block.gate), block.activation)
            opened = opened if block.up is None else opened * self.linear(u, block.up)
            update = self.linear(opened, block.down)[:count]
        return scaled(normed(update, block.after_mlp), block.residual)

    def logits(self, x: Tensor, rows: int | None = None) -> Tensor:
        """What the head says of states T [n, d]: T [n, V], or of its first `rows` alone."""
        spine, weight = self.spine, first_rows(self.spine.head, rows)
        logits = multiply(normed(x, spine.norm), weight)
        self._count(weight)
        return capped(scaled(logits, spine.logit_scale), spine.softcap)

    def linear(self, x: Tensor, of: Linear) -> Tensor:
        self._count(of.weight)
        return multiply(x, *of)

    def _turned(
        self, z: Tensor, of: Linear, heads: int, norm: Norm | None, rows: Tensor | None, block: LayerTensors
    ) -> Tensor:
        """Heads of z, T [n, heads, hd], turned by the tokens' places."""
        cos, sin = (t if rows is None else t[rows] for t in self._angles[block.rope])
        return heads_of(self.linear(z, of), heads, norm, block, cos, sin)

    def _count(self, weight: Weight) -> None:
        self._stats.weight_bytes += size_of(weight)


def taken(x: Tensor, block: LayerTensors, unit: str) -> Tensor:
    """What attention or the MLP takes of the stream."""
    return x if block.bare else normed(x, block.before_mlp if unit == "mlp" else block.before_attn)


def shown(z: Tensor, block: LayerTensors, unit: str) -> Tensor:
    """What a method sees of what a unit takes."""
    return normed(z, block.before_mlp if unit == "mlp" else block.before_attn) if block.bare else z


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, *norm)


def scaled(x: Tensor, by: float) -> Tensor:
    return x if by == 1.0 else x * by
