"""A prefill pass: rows that a layer keeps are gathered once, run by the library's matrix products, and scattered back.

K, V and the router see every row. The host learns one number a layer, how many rows were kept: beside products of
hundreds of rows that wait is small. Row counts are rounded up so that the products come in a few shapes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.kernels.passing import PagedCache
from depthdial.kernels.tensors import LayerTensors, Linear, ModelTensors, Norm
from depthdial.kernels.triton.attention import Queries
from depthdial.kernels.triton.gate import gates_of, plain
from depthdial.kernels.triton.linear import Map, linear
from depthdial.kernels.triton.mlp import multiply_activated
from depthdial.kernels.triton.norm import rms_norm
from depthdial.kernels.triton.prefill_attention import attend_prompt
from depthdial.kernels.triton.rope import Angles
from depthdial.kernels.triton.route import Choice, Place, route
from depthdial.kernels.triton.rows import Rows, Split
from depthdial.kernels.triton.tiles import tiles_for

ROUND = 128


class PrefillPass:
    """One chunk of prompts, N tokens, those of a sequence side by side and in order."""

    def __init__(
        self,
        model: ModelTensors,
        cache: PagedCache,
        place: Place,
        starts: list[int],
        offsets: Tensor,
        given: Tensor | None = None,
        routed: bool = True,
    ):
        """starts: where each sequence's tokens begin, and N. offsets: fp32 [N]. given: uint8 [L, N]."""
        self.model, self.cache, self.place, self._gates = model, cache, place, gates_of(model)
        self.routed, self.given, self.offsets = routed, given, offsets
        rows, depth, self.device, self.dtype = starts[-1], len(model.layers), cache.k.device, cache.k.dtype
        self.starts = torch.tensor(starts, dtype=torch.int32, device=self.device)
        self.longest = max(end - start for start, end in pairwise(starts))
        self.keep = torch.ones(depth, rows, dtype=torch.uint8, device=self.device)
        self.score = torch.ones(depth, rows, dtype=torch.float32, device=self.device)
        self.rows_run = [rows] * depth
        """How many rows ran each layer, known after `run`."""
        self.padded_rows = 0
        """Rows computed for nothing, by rounding row counts up."""
        self._run, self._skip = torch.ones(2, rows, device=self.device)
        self._split = Split.empty(rows, self.device)
        self._arrived = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._angles = Angles(model.ropes, rows, self.dtype, self.device)
        self._angles.turn(place.positions)

    def run(self, ids: Tensor) -> Tensor:
        """ids: int64 [N] -> the residual stream after the last layer, T [N, d]."""
        x = plain(self.model.embed)[ids]
        if self.model.embed_scale != 1.0:
            x *= torch.tensor(self.model.embed_scale, dtype=self.dtype, device=self.device)
        for index, layer in enumerate(self.model.layers):
            self._layer(index, layer, x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """x: T [M, d], of the rows that are asked for -> fp32 [M, V]."""
        out = torch.empty(len(x), len(self.model.head), dtype=torch.float32, device=self.device)
        rows = Rows(torch.full((1,), len(x), dtype=torch.int32, device=self.device))
        head = (Map(plain(self.model.head), None, out),)
        linear(_norm(x, self.model.norm), head, rows, tiles_for(len(x)).head, softcap=self.model.softcap)
        return out

    def _layer(self, index: int, layer: LayerTensors, x: Tensor) -> None:
        """In place on x, T [N, d]."""
        z = _norm(x, layer.before_attn)
        choice = self._choice(index, layer, z)
        cos, sin = self._angles.cos[layer.rope], self._angles.sin[layer.rope]
        caches = self.cache.k, self.cache.v
        here = self.place._replace(page_table=self.cache.table[index if layer.cache is None else layer.cache])
        late = choice is not None and layer.absent == "nothing"  # decided first, then projected for those who run
        k, v = (None, None) if late else (_apply(layer.k, z), _apply(layer.v, z))
        route(k, v, layer.k_norm, cos, sin, *caches, here, choice)
        if choice is None:
            x.copy_(self._kept(layer, x, z, here, cos, sin, *caches, self.starts, None))
            return
        count = self.rows_run[index] = int(choice.into.kept.count)  # the one wait of a layer
        if count:
            kept = self._padded(choice.into.kept, count)
            before = F.pad(choice.keep.cumsum(0, dtype=torch.int32), (1, 0))
            bounds = before[self.starts.long()].contiguous()
            place = here._replace(sequences=self.place.sequences[kept], positions=self.place.positions[kept])
            if late:
                k, v = _apply(layer.k, z[kept]), _apply(layer.v, z[kept])
                those = place._replace(live=Rows(choice.into.kept.count))
                route(k, v, layer.k_norm, cos[kept], sin[kept], *caches, those, None)
            gate = self._gates[index]
            weight = self._run[kept] if gate is not None and gate.soft else None
            y = self._kept(layer, x[kept], z[kept], place, cos[kept], sin[kept], *caches, bounds, weight)
            x.index_copy_(0, kept[:count], y[:count])
        if count < len(x) and layer.adapter is not None:
            skipped = self._padded(choice.into.skipped, len(x) - count)
            gate, up, down = (Linear(weight) for weight in layer.adapter)
            update = _gated(_norm(x[skipped], layer.before_mlp), gate, up, down, "silu")
            update *= self._skip[skipped, None].to(self.dtype)
            x.index_add_(0, skipped[: len(x) - count], update[: len(x) - count])

    def _kept(
        self, layer: LayerTensors, x: Tensor, z: Tensor, place: Place, cos: Tensor, sin: Tensor,
        k_cache: Tensor, v_cache: Tensor, bounds: Tensor, weight: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The layer's output for gathered rows: x, z, T [M, d], of which `bounds` says whose they are."""
        q = _apply(layer.q, z)
        attended = torch.zeros_like(q)
        queries = Queries(q, layer.q_norm, cos, sin, layer.scale, layer.window)
        attend_prompt(queries, k_cache, v_cache, place, None, bounds, self.longest, attended)
        h = x + _normed(_apply(layer.o, attended), layer.after_attn)
        assert layer.up is not None, "refused in `gates_of`"
        update = _gated(_norm(h, layer.before_mlp), layer.gate, layer.up, layer.down, layer.activation)
        update = _normed(update, layer.after_mlp)
        return h + (update if weight is None else weight[:, None].to(self.dtype) * update)

    def _padded(self, rows: Rows, count: int) -> Tensor:
        """The list and, up to a multiple of ROUND, rows whose results are dropped: what an earlier list left there."""
        assert rows.index is not None
        index = rows.index[: -(-count // ROUND) * ROUND].long()
        self.padded_rows += len(index) - count
        return index

    def _choice(self, index: int, layer: LayerTensors, z: Tensor) -> Choice | None:
        gate, by = self._gates[index], layer.branch.by
        if not self.routed or by == "no" or (by == "table" and self.given is None):
            return None
        code = None if gate is None else F.linear(z, gate.enc)
        given = None if gate is not None or self.given is None else self.given[index]
        return Choice(
            gate, code, self.offsets, given, self.keep[index], self.score[index], self._run, self._skip,
            self._split, self._arrived,
        )  # fmt: skip


def _apply(projection: Linear, x: Tensor) -> Tensor:
    return F.linear(x, plain(projection.weight), projection.bias)


def _gated(u: Tensor, gate: Linear, up: Linear, down: Linear, activation: str) -> Tensor:
    inner = _apply(gate, u)
    multiply_activated(inner, _apply(up, u), activation)
    return _apply(down, inner)


def _norm(x: Tensor, norm: Norm) -> Tensor:
    out = torch.empty_like(x)
    rms_norm(x, norm, out, Rows(torch.full((1,), len(x), dtype=torch.int32, device=x.device)))
    return out


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else _norm(x, norm)
