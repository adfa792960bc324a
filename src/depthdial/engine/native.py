"""Passes on a CPU in one native call: small ones, and large ones of a bf16 model where the machine has AMX.

Others go to the torch runner, over the same cache and weights.

What a native pass decides and what it costs is tested against the torch runner, which says what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.core.cost import Ledger
from depthdial.core.gate import Gate
from depthdial.core.layers import Adapter, LinearRouter, Router
from depthdial.core.layers import plain as plain_layer
from depthdial.core.method import Method
from depthdial.core.route import Route
from depthdial.engine.batch import Batch, Passed
from depthdial.engine.breakeven import BreakEven
from depthdial.engine.runner import TorchRunner
from depthdial.engine.stats import Stats
from depthdial.kernels.cpu.native import Counters, NativeModel
from depthdial.kernels.tensors import (
    MAX_TOKENS,
    AdapterTensors,
    LayerTensors,
    ModelTensors,
    RouterTensors,
)
from depthdial.models.block import Spine

SIXTEEN = 16
"""Tokens that a thread of a large native pass takes at least."""
REMEMBERED = 4096
"""Places of the dial whose decisions are remembered."""


class _Buffers(NamedTuple):
    """What a pass of N tokens writes into, made once for each N."""

    logits: Tensor
    argmax: Tensor
    keep: Tensor
    kept: np.ndarray
    """`keep` itself, for numpy."""
    score: Tensor
    given: Tensor
    given_rows: np.ndarray


class NativeRunner:
    """plain: the runner of the same model; tensors: that model for the kernels.

    Raises ValueError for what the kernels cannot run, kernels.cpu.build.Unavailable where they cannot be built.
    """

    small = MAX_TOKENS

    def __init__(self, plain: TorchRunner, tensors: ModelTensors):
        self.plain = plain
        self.model = NativeModel(tensors)
        self._given = None if plain.method.reads_input or not plain.parts else GivenTable(plain)
        self._cost = Costs(plain.ledger)
        self._adapters = np.array([layer.adapter is not None for layer in tensors.layers])
        self._buffers: dict[int, _Buffers] = {}
        self._kept = np.zeros(len(tensors.layers), dtype=np.int64)
        self._routed = self._whole = 0
        """Tokens that native passes ran since the rows were last summed up: with decisions, and without."""

    def run(self, batch: Batch) -> Passed:
        """One pass; see `TorchRunner.run`."""
        if batch.size > self.small:
            return self._large(batch) if self._has_work_for_all(batch.size) else self.plain.run(batch)
        n, cache = batch.size, batch.cache
        if n not in self._buffers:
            self._buffers[n] = self._make(n)
        out = self._buffers[n]
        given = None
        if self._given is not None and not batch.untouched:
            self._given.fill(out.given_rows, batch)
            given = out.given
        logits, argmax = (None, out.argmax) if batch.greedy else (out.logits, None)
        if not batch.last:
            logits = argmax = None  # in the middle of a prompt nobody asks for the next token
        counted = self.model.forward(
            batch.ids, batch.positions, batch.slots, cache.table, cache.k, cache.v, batch.offsets, given,
            logits, out.keep, out.score, batch.vote, argmax, batch.exact,
        )  # fmt: skip
        depths, costs = self._count(batch, out.kept, counted)
        keep = None if batch.untouched else out.kept
        if argmax is not None:
            tokens = argmax.tolist()
            return Passed(None, depths, costs, [tokens[i] for i in batch.last], keep)
        return Passed(out.logits[batch.last] if batch.last else None, depths, costs, keep=keep)

    @property
    def break_even(self) -> BreakEven | None:
        """Of the plain runner. Native passes need none: rows are copied together for the kernels anyway."""
        return self.plain.break_even

    @break_even.setter
    def break_even(self, found: BreakEven | None) -> None:
        self.plain.break_even = found

    def _has_work_for_all(self, tokens: int) -> bool:
        """Does a native pass of so many tokens keep at least half of the threads busy? They take sixteen at a time."""
        return self.model.prefills and 2 * tokens > SIXTEEN * torch.get_num_threads()

    def _large(self, batch: Batch) -> Passed:
        """A pass of more tokens than `small`: prompts, or many rows that decode."""
        n, cache, depth = batch.size, batch.cache, self.model.depth
        keep, score = torch.ones(depth, n, dtype=torch.uint8), torch.empty(depth, n)
        given = None
        if self._given is not None and not batch.untouched:
            given = torch.ones_like(keep)
            self._given.fill(given.numpy(), batch)
        asked = torch.tensor(batch.last, dtype=torch.int32)
        logits = batch.room(len(asked), self.model.vocabulary)
        counted = self.model.prefill(
            batch.ids, batch.positions, batch.slots, cache.table, cache.k, cache.v, batch.offsets, given,
            asked, logits, keep, score, batch.vote,
        )  # fmt: skip
        depths, costs = self._count(batch, keep.numpy(), counted)
        return Passed(logits if batch.last else None, depths, costs, keep=None if batch.untouched else keep.numpy())

    @property
    def stats(self) -> Stats:
        """The plain runner's, with what native passes ran added to its rows."""
        stats, whole = self.plain.stats, self._whole
        for rows in (stats.rows, stats.attn_rows, stats.mlp_rows):
            rows += self._kept + whole
        stats.kv_rows += self._routed + whole
        stats.adapter_rows += (self._routed - self._kept) * self._adapters
        self._kept[:] = 0
        self._routed = self._whole = 0
        return stats

    def _count(self, batch: Batch, kept: np.ndarray, counted: Counters) -> tuple[list[int], list[float]]:
        """kept: uint8 [L, N]. Depths and costs of the tokens. Rows are summed up when asked for: a pass is short."""
        stats, n = self.plain.stats, batch.size
        stats.passes += 1
        stats.tokens += n
        stats.native_tokens += n
        stats.layers_run += counted.layers_run
        stats.weight_bytes += counted.weight_bytes
        stats.kv_bytes += counted.kv_bytes
        stats.padded_rows += counted.padded_rows
        if batch.untouched:
            self._whole += n
            return [self.model.depth] * n, [1.0] * n
        self._routed += n
        if n == 1:  # the pass is short, and what numpy takes to begin is not
            self._kept += kept[:, 0]
            return [int(np.count_nonzero(kept))], [self._cost.of_one(kept[:, 0])]
        self._kept += kept.sum(1, dtype=np.int64)
        return kept.sum(0, dtype=np.int64).tolist(), self._cost(kept, batch.offsets.numpy())

    def _make(self, n: int) -> _Buffers:
        depth = self.model.depth
        keep, given = (torch.ones(depth, n, dtype=torch.uint8) for _ in range(2))
        logits, argmax = torch.empty(n, self.model.vocabulary), torch.zeros(n, dtype=torch.int64)
        return _Buffers(logits, argmax, keep, keep.numpy(), torch.empty(depth, n), given, given.numpy())


class Costs:
    """True cost of tokens from the layers they kept: `core.cost.token_cost` where a layer is kept as a whole."""

    def __init__(self, ledger: Ledger):
        self._work = np.zeros(len(ledger.layers))
        for site in set(ledger.always) | set(ledger.skipped):
            self._work[site.layer] += ledger.saved(site) / ledger.dense
        self._least = 1 + sum(ledger.always.values()) / ledger.dense - float(self._work.sum())

    def __call__(self, keep: np.ndarray, offsets: np.ndarray) -> list[float]:
        """keep: uint8 [L, N] -> N numbers."""
        return np.where(offsets == np.inf, 1.0, self._least + self._work @ keep).tolist()

    def of_one(self, keep: np.ndarray) -> float:
        """keep: uint8 [L], of a token that does not run the untouched base."""
        return self._least + float(self._work @ keep)


class GivenTable:
    """The decisions of a method that does not look at a layer's input: asked for before a pass, for all layers."""

    def __init__(self, plain: TorchRunner):
        self._method, self._ledger = plain.method, plain.ledger
        self._parts = [(site, parts) for site, parts in sorted(plain.parts.items()) if site.unit != "mlp"]
        self._known: dict[float, np.ndarray] = {}

    def fill(self, into: np.ndarray, batch: Batch) -> None:
        """into: uint8 [L, N], 1 where the layer runs."""
        offsets = batch.offsets.cpu()
        if self._method.grain != "static":
            into[:] = self._ask(offsets, batch.positions.cpu(), batch.ids.cpu())
            return
        for i, offset in enumerate(offsets.tolist()):  # what depends on nothing else is remembered
            if offset not in self._known:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                one = torch.zeros(1, dtype=torch.int64)
                self._known[offset] = self._ask(offsets[i : i + 1], one, one)[:, 0]
            into[:, i] = self._known[offset]

    @torch.no_grad()
    def _ask(self, offsets: Tensor, positions: Tensor, ids: Tensor) -> np.ndarray:
        """uint8 [L, N]. offsets: fp32 [N]; positions, ids: int [N]."""
        route, shape = Route(self._ledger, offsets), (len(ids), 1)
        route.begin(shape, None, tokens=ids[:, None])
        route.positions = positions[:, None].long()
        x, keep = torch.zeros(*shape, 1), torch.ones(len(self._ledger.layers), len(ids), dtype=torch.uint8)
        layers = [site.layer for site, _ in self._parts]
        if (found := self._method.keeps(layers, route)) is not None:
            keep[layers] = found[..., 0].to(torch.uint8)
            return keep.numpy()
        for site, parts in self._parts:
            keep[site.layer] = self._method.decide(parts, x, site, route).keep[:, 0]
        return keep.numpy()


def tensors_of(spine: Spine, plain: TorchRunner) -> ModelTensors:
    """The model for the kernels: references to its tensors, and each layer's gate as `Method.gate` says it.

    Raises ValueError for a method that says too little of itself for a native pass.
    """
    routed: dict[int, dict[str, Any]] = {}
    for site, parts in plain.parts.items():
        routed.setdefault(site.layer, {})[site.unit] = parts
    if any(set(units) not in ({"attn", "mlp"}, {"layer"}) for units in routed.values()):
        raise ValueError("the method does not route attention and MLP together")
    layers = []
    for i, block in enumerate(spine.blocks):
        router = adapter = None
        if i in routed:
            gate = _gate(plain.method, routed[i], i)
            router = None if gate.router is None else _router(gate.router, gate, spine.norm.weight.dtype)
            adapter = None if gate.adapter is None else _adapter(gate.adapter, spine.norm.weight.dtype)
        sparse = i in routed and plain.method.kv == "none"
        layers.append(LayerTensors(**vars(block), router=router, adapter=adapter, sparse_kv=sparse))
    return ModelTensors(
        spine.embed, tuple(layers), spine.norm, spine.head, spine.ropes, spine.embed_scale, spine.softcap
    )


def _gate(method: Method, parts: Mapping[str, Any], layer: int) -> Gate:
    gate = method.gate(parts, layer)
    if gate is None or (gate.router is None and method.reads_input):
        raise ValueError("the method gives no gate that could be fused (Method.gate)")
    if "layer" in parts and (gate.weights == "soft" or gate.adapter is not None):
        raise ValueError("the kernels weigh and replace the MLP of a layer, not the layer as a whole")
    parts_read = [part for part in (gate.router, gate.adapter) if part is not None]
    if not all(plain_layer(layer) for part in parts_read for layer in part.children()):
        raise ValueError("its routers or adapters hold a LoRA or another foreign layer; merge it (merge_and_unload)")
    return gate


@torch.no_grad()
def _router(router: Router | LinearRouter, gate: Gate, dtype: torch.dtype) -> RouterTensors:
    if isinstance(router, LinearRouter):
        return _linear_router(router.folded, gate.cut, dtype)
    return RouterTensors(
        router.enc.weight.to(dtype),
        router.norm.weight.float(),
        router.norm.eps or 0.0,
        "norm_tanh" if router.order == "norm_tanh" else "tanh_norm",
        router.folded[0],
        float(router.bias),
        gate.cut,
        gate.weights == "soft",
    )


def _linear_router(vector: Tensor, cut: float, dtype: torch.dtype) -> RouterTensors:
    """vector: fp32 [d]. In a narrower dtype it is the sum of three: the first has its leading digits, and so on."""
    rows, rest = [], vector
    for _ in range(1 if dtype == torch.float32 else 3):
        rows.append(rest.to(dtype))
        rest = rest - rows[-1].float()
    ones = torch.ones(len(rows), device=vector.device)
    return RouterTensors(torch.stack(rows), ones, 0.0, "linear", ones, 0.0, cut)


def _adapter(adapter: Adapter, dtype: torch.dtype) -> AdapterTensors:
    return AdapterTensors(*(part.weight.detach().to(dtype) for part in (adapter.gate, adapter.up, adapter.down)))
