"""What benchmarks/gpu.py times: our passes, dense and adaptive, with the bytes and operations of their routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from depthdial.engine.graph import Graphs, WeightBytes
from depthdial.kernels.passing import PagedCache
from depthdial.kernels.tensors import PAGE, ModelTensors
from depthdial.kernels.triton.prefill_pass import PrefillPass
from depthdial.kernels.triton.route import Place
from depthdial.kernels.triton.rows import Rows


class Work(NamedTuple):
    """What a pass must do, however well it is done."""

    bytes: int
    """Weights, each once, and the K and V in sight of each row that attends."""
    operations: int


class Limits(NamedTuple):
    bytes_per_second: float
    operations_per_second: float

    def least(self, work: Work) -> float:
        """Seconds."""
        return max(work.bytes / self.bytes_per_second, work.operations / self.operations_per_second)


@dataclass
class Case:
    name: str
    tokens: int
    variants: dict[str, Callable[[], None]]
    """"dense" and "adaptive": each runs its pass once."""
    route: Callable[[], Any]
    """Runs the adaptive pass; what has its `keep` and `score`, [L, N]."""
    model: ModelTensors
    positions: Tensor
    asked: int
    """Rows whose logits are computed."""

    def __post_init__(self):
        self.first = self.route()
        """The adaptive pass that was run to count its work."""
        keep = self.first.keep[:, : self.tokens]
        self.layers_run = float(keep.float().mean())
        self.routed = work(self.model, keep, self.positions, self.asked, True)
        self.dense = work(self.model, torch.ones_like(keep), self.positions, self.asked, False)


def work(model: ModelTensors, keep: Tensor, positions: Tensor, asked: int, routed: bool) -> Work:
    """keep: uint8 [L, N]; positions: int [N]."""
    rows = keep.sum(1, dtype=torch.int64).cpu().numpy()
    weights, n = WeightBytes(model), keep.shape[1]
    item = model.norm.weight.element_size()
    seen = positions.long() + 1
    macs = asked * weights.head // item + int((n * (weights.always + weights.router * routed)).sum()) // item
    macs += int((rows * weights.kept + (n - rows) * weights.skipped).sum()) // item
    cache = 0
    for layer, kept in zip(model.layers, keep.bool(), strict=True):
        attended = int(seen[kept].sum())
        macs += 2 * attended * layer.heads * layer.head_dim
        # tokens of one prompt share their reads: each sequence's K and V once
        longest = int(seen[kept].max()) if bool(kept.any()) else 0
        shared = attended if asked == n else longest
        cache += shared * 2 * layer.kv_heads * layer.head_dim * item
    return Work(weights.read(rows, n - rows, n, asked, routed) + cache, 2 * macs)


def decode_case(model: ModelTensors, batch: int, context: int, device: torch.device) -> Case:
    """One token of each of `batch` sequences, after `context` others with random K and V."""
    pages = context // PAGE + 1
    graphs = Graphs(model, _cache(model, batch, pages, device), buckets=(batch,))
    ids = torch.randint(len(model.head), (batch,), device=device)
    positions = torch.full((batch,), context, dtype=torch.int32, device=device)
    sequences = torch.arange(batch, dtype=torch.int32, device=device)
    offsets = torch.zeros(batch, device=device)

    def run(routed: bool) -> Any:
        return graphs.run(ids, positions, sequences, offsets, routed=routed)

    variants: dict[str, Callable[[], None]] = {"dense": lambda: run(False), "adaptive": lambda: run(True)}
    return Case(f"decode, batch {batch}", batch, variants, lambda: run(True), model, positions, batch)


def prefill_case(model: ModelTensors, tokens: int, device: torch.device) -> Case:
    """One prompt from its start; logits of its last token."""
    pages = -(-tokens // PAGE)
    cache = _cache(model, 1, pages, device)
    ids = torch.randint(len(model.head), (tokens,), device=device)
    positions = torch.arange(tokens, dtype=torch.int32, device=device)
    count = torch.full((1,), tokens, dtype=torch.int32, device=device)
    place = Place(Rows(count), torch.zeros_like(positions), positions, cache.table[0])

    def run(routed: bool) -> PrefillPass:
        made = PrefillPass(model, cache, place, [0, tokens], torch.zeros(tokens, device=device), routed=routed)
        made.logits(made.run(ids)[-1:])
        return made

    variants: dict[str, Callable[[], None]] = {"dense": lambda: run(False), "adaptive": lambda: run(True)}  # type: ignore[dict-item]
    return Case(f"prefill, {tokens} tokens", tokens, variants, lambda: run(True), model, positions, 1)


def _cache(model: ModelTensors, sequences: int, pages: int, device: torch.device) -> PagedCache:
    """Full of random K and V, its pages in no order."""
    layer, count = model.layers[0], model.caches * sequences * pages
    shape = (count, layer.kv_heads, PAGE, layer.head_dim)
    k, v = (torch.empty(shape, dtype=model.norm.weight.dtype, device=device).normal_() for _ in range(2))
    table = torch.randperm(count, device=device).to(torch.int32)
    return PagedCache(k, v, table.view(model.caches, sequences, pages))
