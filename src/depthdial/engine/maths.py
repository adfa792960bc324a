"""What the weights of a model make of some tokens, in torch, with the bytes of weights that are read counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from depthdial.engine.layer import Angles, Forward, angles_of, capped, normed, scaled
from depthdial.engine.stats import Stats
from depthdial.engine.weights import first_rows, look_up, multiply, size_of
from depthdial.kernels.tensors import LayerTensors, Linear, ModelTensors


class Maths:
    """spine: of the model; stats: where bytes are counted; product: of rows and a weight."""

    def __init__(self, spine: ModelTensors, stats: Stats, product: Callable[..., Tensor] = multiply):
        self.spine, self._stats, self._product = spine, stats, product
        self._angles: dict[str, Angles] = {}
        self._query_scale: Tensor | None = None

    def begin(self, ids: Tensor, positions: Tensor, dtype: torch.dtype, lengths: Tensor) -> Tensor:
        """A pass over N tokens: their embeddings, T [N, d]. ids: int64 [N]; positions: int [N]; lengths: int64 [2, N],
        see `Rope.stretch`."""
        spine, inv_freq = self.spine, self.spine.frequencies(lengths)
        self._angles = {
            kind: angles_of(positions, rope, dtype, None if inv_freq is None else inv_freq[:, i])
            for i, (kind, rope) in enumerate(spine.ropes.items())
        }
        scale = spine.query_scale
        self._query_scale = None if scale is None else scale(positions).to(dtype)
        x = look_up(ids, self.spine.embed, dtype)
        self._stats.weight_bytes += x.numel() * x.element_size()
        return x if self.spine.embed_scale == 1.0 else x * self.spine.embed_scale

    def of(self, layer: LayerTensors) -> Forward:
        """A visit of a layer in this pass."""
        if (experts := layer.experts) is not None:
            layer = layer._replace(experts=experts._replace(count=self._count))
        return Forward(layer, self._angles[layer.rope], self._linear, self._query_scale)

    def logits(self, x: Tensor, rows: int | None = None) -> Tensor:
        """What the head says of states T [n, d]: T [n, V], or of its first `rows` alone."""
        spine = self.spine
        logits = self._linear(normed(x, spine.norm), Linear(first_rows(spine.head, rows)))
        return capped(scaled(logits, spine.logit_scale), spine.softcap)

    def _linear(self, x: Tensor, of: Linear) -> Tensor:
        self._count(size_of(of.weight))
        return self._product(x, *of)

    def _count(self, size: int) -> None:
        self._stats.weight_bytes += size
