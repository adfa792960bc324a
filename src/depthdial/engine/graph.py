"""Passes on a GPU: small ones as one captured graph for each size of batch, larger ones layer by layer.

A graph knows nothing of how many rows a layer keeps: that stays on the device, in lists that its kernels read. On a
CPU the same code runs without a graph, in Triton's interpreter, which is how it is tested against the torch runner.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.engine.batch import Batch, Passed
from depthdial.engine.breakeven import BreakEven
from depthdial.engine.known_ahead import GivenTable
from depthdial.engine.model_tensors import Native
from depthdial.engine.runner import TorchRunner
from depthdial.engine.token_costs import Costs
from depthdial.kernels.passing import PagedCache
from depthdial.kernels.tensors import PAGE, ModelTensors
from depthdial.kernels.triton.decode_pass import DecodePass
from depthdial.kernels.triton.gate import gates_of
from depthdial.kernels.triton.prefill_pass import PrefillPass
from depthdial.kernels.triton.route import Place
from depthdial.kernels.triton.rows import Rows
from depthdial.kernels.triton.tiles import FEW

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Kind(NamedTuple):
    """What sets one captured pass apart from another."""

    rows: int
    routed: bool
    given: bool


class Graphs:
    """Decode passes over one cache, by size. A pass of n tokens runs in the smallest bucket that holds it, whose other
    rows touch nothing. A kind of pass is compiled and captured when it is first asked for, which takes seconds."""

    def __init__(
        self,
        model: ModelTensors,
        cache: PagedCache,
        buckets: tuple[int, ...] = BUCKETS,
    ):
        """cache: must stay where it is: graphs hold its addresses."""
        self.model, self.cache, self.buckets = model, cache, tuple(sorted(buckets))
        self._passes: dict[_Kind, DecodePass] = {}
        self._graphs: dict[_Kind, torch.cuda.CUDAGraph] = {}

    @property
    def most(self) -> int:
        """Tokens of the largest pass."""
        return self.buckets[-1]

    @torch.no_grad()
    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        sequences: Tensor,
        offsets: Tensor,
        given: Tensor | None = None,
        routed: bool = True,
    ) -> DecodePass:
        """One pass of n tokens; its outputs, in their first n rows, hold until the next pass of the same size.

        ids: int64 [n]; positions, sequences: int32 [n]; offsets: fp32 [n], +inf for the untouched base; given: uint8
        [L, n]. routed: False is the base for all rows, without a router.
        """
        n = len(ids)
        if n > self.most:
            raise ValueError(f"a decode pass holds at most {self.most} tokens, not {n}; split it")
        kind = _Kind(next(size for size in self.buckets if size >= n), routed, given is not None)
        if kind not in self._passes:
            self._passes[kind] = DecodePass(self.model, self.cache, *kind)
        made = self._passes[kind]
        for into, values in (
            (made.ids, ids), (made.place.positions, positions), (made.place.sequences, sequences),
            (made.offsets, offsets),
        ):  # fmt: skip
            into[:n].copy_(values)
        if given is not None:
            made.given[:, :n].copy_(given)
        made.place.live.count.fill_(n)
        self._go(kind, made)
        return made

    def _go(self, kind: _Kind, made: DecodePass) -> None:
        if kind in self._graphs:
            self._graphs[kind].replay()
            return
        made.run()  # compiles what is not compiled; its results are those of this pass
        if made.device.type == "cuda":
            torch.cuda.synchronize(made.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                made.run()
            self._graphs[kind] = graph


class GraphRunner:
    """plain: the runner of the same model; native: that model for the kernels.

    Raises ValueError for what the kernels cannot run.
    """

    def __init__(self, plain: TorchRunner, native: Native, buckets: tuple[int, ...] = BUCKETS):
        gates_of(native.tensors)
        if plain.program.sparse and not plain.method.by_row:
            raise ValueError("these kernels read all that lies before a token, and this method leaves gaps")
        self.plain, self.stats, self.tensors, self.buckets = plain, plain.stats, native.tensors, buckets
        self.small, self.roles, self.by_prompt = max(buckets), plain.roles, plain.by_prompt
        self.break_even: BreakEven | None = None
        self._given = GivenTable(plain, native.rows) if plain.method.ahead and plain.parts else None
        self._cost = Costs(plain.ledger, native.rows)
        self._graphs: Graphs | None = None
        self._weights = WeightBytes(native.tensors)

    @torch.no_grad()
    def run(self, batch: Batch) -> Passed:
        """One pass; see `TorchRunner.run`."""
        n, cache = batch.size, batch.cache
        if self._graphs is None or self._graphs.cache.table.data_ptr() != cache.table.data_ptr():
            self._graphs = Graphs(self.tensors, cache.paged, self.buckets)
        given = self._decided(batch)
        where = batch.positions, batch.slots, batch.offsets
        if n <= FEW or (n == batch.singles and n <= self.small):
            made = self._graphs.run(batch.ids, *where, given, routed=not batch.untouched)
            keep, logits, greedy = made.keep[:, :n], made.logits, made.greedy
            if batch.last:
                logits, greedy = logits[batch.last], greedy[batch.last]
        else:
            made, x = self._prompts(batch, given)
            keep, logits = made.keep, made.logits(x[batch.last]) if batch.last else x
            greedy = logits.argmax(-1)
            self.stats.padded_rows += made.padded_rows
        kept = keep.cpu().numpy()
        for visit in self.plain.program.sparse:
            batch.cache.note(visit, batch.slots, batch.positions, keep[visit])
        self._count(batch, kept)
        costs = [self._cost.untouched] * n if batch.untouched else self._cost(kept, batch.offsets.cpu().numpy())
        depths = kept.sum(0, dtype=np.int64).tolist()
        if not batch.last:
            return Passed(None, depths, costs, keep=kept)
        if batch.greedy:  # as `NativeModel.forward` says it
            finite = logits.gather(-1, greedy[:, None])[:, 0].isfinite()
            greedy = torch.where(finite, greedy, -1)
        tokens = greedy.tolist() if batch.greedy else None
        return Passed(None if batch.greedy else logits, depths, costs, tokens, kept)

    def _prompts(self, batch: Batch, given: Tensor | None) -> tuple[PrefillPass, Tensor]:
        starts = [0]
        for part in batch.slices:
            starts.append(starts[-1] + part.count)
        count = torch.full((1,), batch.size, dtype=torch.int32, device=batch.ids.device)
        place = Place(Rows(count), batch.slots, batch.positions, batch.cache.table[0])
        made = PrefillPass(self.tensors, batch.cache.paged, place, starts, batch.offsets, given, not batch.untouched)
        return made, made.run(batch.ids)

    def _decided(self, batch: Batch) -> Tensor | None:
        """uint8 [L, N], of a method that looks at places only."""
        if self._given is None or batch.untouched:
            return None
        table = np.ones((len(self.tensors.layers), batch.size), dtype=np.uint8)
        self._given.fill(table, batch)
        return torch.from_numpy(table).to(batch.ids.device)

    def _count(self, batch: Batch, kept: np.ndarray) -> None:
        """kept: uint8 [L, N]."""
        stats, n = self.stats, batch.size
        rows = kept.sum(1, dtype=np.int64)
        skips = np.zeros_like(rows) if batch.untouched else n - rows
        stats.passes += 1
        stats.tokens += n
        stats.native_tokens += n
        stats.kv_rows += np.where(self._weights.sparse_kv, rows, n)
        for counted in (stats.rows, stats.attn_rows, stats.mlp_rows):
            counted += rows
        stats.adapter_rows += skips * self._weights.has_adapter
        stats.layers_run += int((rows > 0).sum())
        stats.weight_bytes += self._weights.read(rows, skips, n, len(batch.last), not batch.untouched)
        seen = batch.positions.cpu().numpy().astype(np.int64) + 1
        for layer, keeps in zip(self.tensors.layers, kept, strict=True):
            # whole pages, from the one where the window begins
            first = 0 if layer.window is None else np.maximum(seen - layer.window, 0) // PAGE
            pages = ((seen - 1) // PAGE + 1 - first) * keeps
            stats.kv_bytes += int(pages.sum()) * PAGE * 2 * layer.kv_heads * layer.head_dim * batch.cache.k.itemsize


class WeightBytes:
    """Bytes of weights that a pass reads, by what ran: each weight once, however many rows share it."""

    def __init__(self, model: ModelTensors):
        self.always, self.router, self.kept, self.skipped = (np.zeros(len(model.layers), np.int64) for _ in range(4))
        self.sparse_kv = np.array([layer.absent == "nothing" for layer in model.layers])
        for i, (layer, gate) in enumerate(zip(model.layers, gates_of(model), strict=True)):
            (self.kept if layer.absent == "nothing" else self.always)[i] = _bytes(layer.k.weight, layer.v.weight)
            self.kept[i] += _bytes(*(getattr(layer, n).weight for n in ("q", "o", "gate", "up", "down")))
            self.router[i] = 0 if gate is None else _bytes(gate.enc)
            self.skipped[i] = 0 if layer.adapter is None else _bytes(*layer.adapter)
        self.has_adapter = self.skipped > 0
        self.head = _bytes(model.head)
        self.embedding = model.norm.weight.numel() * model.norm.weight.element_size()

    def read(self, rows: np.ndarray, skips: np.ndarray, tokens: int, asked: int, routed: bool) -> int:
        """rows, skips: int64 [L], how many tokens ran and skipped each layer; asked: tokens whose logits are wanted."""
        total = self.always + self.kept * (rows > 0) + self.skipped * (skips > 0) + self.router * routed
        return int(total.sum()) + tokens * self.embedding + (self.head if asked else 0)


def _bytes(*weights: object) -> int:
    return sum(w.numel() * w.element_size() for w in weights if isinstance(w, Tensor))
