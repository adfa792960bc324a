"""A whole decode pass over buffers that stay in place: embedding, every layer, head, greedy choice. Nothing in it waits
for the host, so that a GPU can capture it as one graph; a row of padding, beyond `live`, touches nothing.

This file is *not* about graphs or sizes of batches (engine.graph).
"""

from __future__ import annotations

import torch
from torch import Tensor

from depthdial.kernels.passing import PagedCache
from depthdial.kernels.tensors import LayerTensors, Linear, ModelTensors, Norm
from depthdial.kernels.triton.attention import Parts, Queries, attend, splits_for
from depthdial.kernels.triton.gate import Gate, gates_of, plain
from depthdial.kernels.triton.linear import Map, linear
from depthdial.kernels.triton.mlp import Gated, down, gate_up
from depthdial.kernels.triton.norm import add_normed, rms_norm
from depthdial.kernels.triton.rope import Angles
from depthdial.kernels.triton.route import Choice, Place, route
from depthdial.kernels.triton.rows import Rows, Split
from depthdial.kernels.triton.tiles import FEW, Tiles, tiles_for


class DecodePass:
    """A pass of exactly `rows` rows, the first `live` of them tokens. The caller fills the inputs, calls `run` and
    reads `logits`, `greedy`, `keep` and `score`."""

    def __init__(
        self,
        model: ModelTensors,
        cache: PagedCache,
        rows: int,
        routed: bool = True,
        given: bool = False,
        tiles: Tiles | None = None,
        work: bool = False,
    ):
        """routed: False leaves every router, adapter and table out: each row runs each layer. given: layers that a
        table decides do as `self.given` says. work: count tiles and pages per layer in `self.work`.

        Raises ValueError for what these kernels do not run.
        """
        self.model, self.cache, self._gates = model, cache, gates_of(model)
        self.routed, self.has_given = routed, given
        self.tiles, self.few = tiles or tiles_for(rows), rows <= FEW
        self.device, self.dtype = cache.k.device, cache.k.dtype
        depth, width = len(model.layers), model.norm.weight.numel()

        def whole(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.ids = whole(rows, dtype=torch.int64)
        self.offsets = whole(rows, dtype=torch.float32)
        self.given = whole(depth, rows, dtype=torch.uint8)
        self.place = Place(Rows(whole(1)), whole(rows), whole(rows), cache.table[0])
        self.keep = whole(depth, rows, dtype=torch.uint8).fill_(1)
        self.score = whole(depth, rows, dtype=torch.float32).fill_(1)
        self.logits = whole(rows, len(model.head), dtype=torch.float32)
        self.greedy = whole(rows, dtype=torch.int64)
        self.work = whole(depth, len(WORK)) if work else None
        self._run, self._skip = whole(2, rows, dtype=torch.float32)
        self._split, self._arrived = Split.empty(rows, self.device), whole(1)
        self._angles = Angles(model.ropes, rows, self.dtype, self.device)
        self._x, self._normed, self._update = whole(3, rows, width, dtype=self.dtype)
        self._embed_scale = torch.tensor(model.embed_scale, dtype=self.dtype, device=self.device)
        self._room: dict[str, Tensor] = {}
        self._zero = {r: whole(r, dtype=self.dtype) for r in {self._rank(gate) for gate in self._gates}}
        kv_heads, head_dim = cache.k.shape[1], cache.k.shape[3]
        heads = max(layer.heads for layer in model.layers)
        splits = splits_for(rows, kv_heads, cache.table.shape[2])
        self._parts = Parts.empty(rows, heads, kv_heads, head_dim, splits, self.device)

    def run(self) -> None:
        torch.index_select(plain(self.model.embed), 0, self.ids, out=self._x)
        if self.model.embed_scale != 1.0:
            self._x.mul_(self._embed_scale)
        self._angles.turn(self.place.positions)
        for index, layer in enumerate(self.model.layers):
            self._attend(index, layer)
            self._mlp(index, layer)
        x, fold = self._input(self.model.norm)
        head = (Map(plain(self.model.head), None, self.logits),)
        linear(x, head, self.place.live, self.tiles.head, fold, softcap=self.model.softcap)
        torch.argmax(self.logits, -1, out=self.greedy)

    def _attend(self, index: int, layer: LayerTensors) -> None:
        live, kept, chooses = self.place.live, self._kept(layer), self._chooses(layer)
        place = self._place(index, layer)
        x, fold = self._input(layer.before_attn)
        q, k, v = (self._map(name, getattr(layer, name)) for name in "qkv")
        code = self._code(index, layer)
        late = chooses and layer.absent == "nothing"  # decided first, then projected for those who run
        own = () if code is None else (code,)
        maps = (q, k, v) if not chooses else own if late else (k, v, *own)
        small = sum(m.weight.shape[0] for m in maps) < 4096
        if maps:
            linear(
                x, maps, live, self.tiles.narrow if small else self.tiles.linear, fold, work=self._count(index, "kv")
            )
        cos, sin = self._angles.cos[layer.rope], self._angles.sin[layer.rope]
        caches = self.cache.k, self.cache.v
        choice = self._choice(index, layer, None if code is None else code.out) if chooses else None
        if late:
            route(None, None, layer.k_norm, cos, sin, *caches, place, choice)
            linear(x, (q, k, v), kept, self.tiles.linear, fold, work=self._count(index, "q"))
            route(k.out, v.out, layer.k_norm, cos, sin, *caches, place._replace(live=kept), None)
        else:
            route(k.out, v.out, layer.k_norm, cos, sin, *caches, place, choice)
            if chooses:
                linear(x, (q,), kept, self.tiles.linear, fold, work=self._count(index, "q"))
        out = self._buffer("attended", q.out.shape[1])
        queries = Queries(q.out, layer.q_norm, cos, sin, layer.scale, layer.window)
        attend(queries, *caches, place, kept, out, self._parts, self._count(index, "pages"))
        self._join(layer, out, kept, self._count(index, "o"))

    def _join(self, layer: LayerTensors, attended: Tensor, kept: Rows, work: Tensor | None) -> None:
        if layer.after_attn is None:
            o = Map(plain(layer.o.weight), layer.o.bias, self._x)
            linear(attended, (o,), kept, self.tiles.linear, residual=self._x, work=work)
        else:
            o = Map(plain(layer.o.weight), layer.o.bias, self._update)
            linear(attended, (o,), kept, self.tiles.linear, work=work)
            add_normed(self._update, layer.after_attn, self._x, kept)

    def _mlp(self, index: int, layer: LayerTensors) -> None:
        kept, chooses = self._kept(layer), self._chooses(layer)
        x, fold = self._input(layer.before_mlp)
        assert layer.up is not None, "refused in `gates_of`"
        mlp = self._gated("inner", (layer.gate, layer.up, layer.down), kept, self._run if chooses else None)
        adapter = None
        if chooses and layer.adapter is not None:
            maps = tuple(Linear(weight) for weight in layer.adapter)
            adapter = self._gated("bypass", maps, self._split.skipped, self._skip)
        counters = self._count(index, "gate_up"), self._count(index, "adapter_up")
        gate_up(x, mlp, adapter, self.tiles.pair, layer.activation, fold, counters)
        out = None if layer.after_mlp is None else self._update
        counters = self._count(index, "down"), self._count(index, "adapter_down")
        down(self._x, mlp, adapter, self.tiles.down, out, counters)
        if layer.after_mlp is not None:
            add_normed(self._update, layer.after_mlp, self._x, kept, mlp.scale)

    def _input(self, norm: Norm) -> tuple[Tensor, Norm | None]:
        """The input of a product and the norm to fold into it: where rows are few, no kernel of its own."""
        if self.few:
            return self._x, norm
        rms_norm(self._x, norm, self._normed, self.place.live)
        return self._normed, None

    def _chooses(self, layer: LayerTensors) -> bool:
        return self.routed and (layer.branch.by == "ops" or (layer.branch.by == "table" and self.has_given))

    def _place(self, index: int, layer: LayerTensors) -> Place:
        return self.place._replace(page_table=self.cache.table[index if layer.cache is None else layer.cache])

    def _kept(self, layer: LayerTensors) -> Rows:
        return self._split.kept if self._chooses(layer) else self.place.live

    def _choice(self, index: int, layer: LayerTensors, code: Tensor | None) -> Choice:
        return Choice(
            self._gates[index], code, self.offsets, None if code is not None else self.given[index],
            self.keep[index], self.score[index], self._run, self._skip, self._split, self._arrived,
        )  # fmt: skip

    def _map(self, name: str, projection: Linear) -> Map:
        weight = plain(projection.weight)
        return Map(weight, projection.bias, self._buffer(name, weight.shape[0]))

    def _code(self, index: int, layer: LayerTensors) -> Map | None:
        """The router's first map, which shares a launch with K and V (and so has a bias if they have)."""
        gate = self._gates[index]
        if gate is None or not self.routed:
            return None
        bias = None if layer.k.bias is None else self._zero[self._rank(gate)]
        return Map(gate.enc, bias, self._buffer("code", self._rank(gate)))

    def _gated(self, name: str, maps: tuple[Linear, ...], rows: Rows, scale: Tensor | None) -> Gated:
        (gate, gate_bias), (up, up_bias), (down_, down_bias) = maps
        gate, up, down_ = plain(gate), plain(up), plain(down_)
        inner = self._buffer(name, gate.shape[0])
        return Gated(rows, gate, up, down_, inner, scale, gate_bias, up_bias, down_bias)

    def _buffer(self, name: str, width: int) -> Tensor:
        """Room that layers share, T [rows, width]."""
        wanted = f"{name} {width}"
        if wanted not in self._room:
            self._room[wanted] = torch.zeros(len(self.ids), width, dtype=self.dtype, device=self.device)
        return self._room[wanted]

    def _count(self, index: int, name: str) -> Tensor | None:
        return None if self.work is None else self.work[index, WORK.index(name) :][:1]

    @staticmethod
    def _rank(gate: Gate | None) -> int:
        return 0 if gate is None else len(gate.folded)


WORK = ("kv", "q", "pages", "o", "gate_up", "down", "adapter_up", "adapter_down")
"""What is counted in each layer: tiles of products (`kv`: with q where the layer always runs; `q`: with k and v where
those who skip write none), and pages read."""
