"""Passes on a CPU in native calls of at most 64 tokens; with AMX, what is read of a prompt in tiles, all at once.

Tiles sum in another order, and under int8 weights activations of prompts stay as they are. So which way a token goes
does not follow from the company it has in a pass, but from its place in its own text: prompts are read, what is written
after them never is. A text is the same alone and in any company, however it is cut into passes.

What a native pass decides and what it costs is tested against the torch runner, which says what it means.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.core.cost import Ledger
from depthdial.core.method import Seen
from depthdial.core.tokens import Tokens, Trace
from depthdial.engine.batch import Batch, Passed
from depthdial.engine.breakeven import BreakEven
from depthdial.engine.runner import TorchRunner
from depthdial.engine.stats import Stats
from depthdial.kernels.cpu.native import Counters, NativeModel
from depthdial.kernels.tensors import MAX_TOKENS, ModelTensors

REMEMBERED = 4096
"""Places of the dial whose decisions are remembered."""


class _Buffers(NamedTuple):
    """What a pass of N tokens writes into, made once for each N."""

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

    def __init__(self, plain: TorchRunner, tensors: ModelTensors, isa: str | None = None):
        if plain.program.gaps:
            raise ValueError("until the kernels take units")
        self.plain = plain
        self.model = NativeModel(tensors, isa=isa)
        self.tiles = self.model.prefills
        self.roles = self.tiles or self.model.int8 or plain.roles
        self._given = GivenTable(plain) if plain.method.ahead and plain.parts else None
        self._cost = Costs(plain.ledger)
        self._adapters = np.array([layer.adapter is not None for layer in tensors.layers])
        self._sparse = np.array([layer.sparse_kv for layer in tensors.layers])
        self._buffers: dict[int, _Buffers] = {}
        self._kept = np.zeros(len(tensors.layers), dtype=np.int64)
        self._routed = self._whole = 0
        """Tokens that native passes ran since the rows were last summed up: with decisions, and without."""

    def run(self, batch: Batch) -> Passed:
        """One pass; see `TorchRunner.run`."""
        n = batch.size
        if n > self.small or (self.roles and 0 < batch.reading < n) or (self.tiles and batch.reading):
            return self._in_parts(batch)
        out = self._out(n)
        given = None
        if self._given is not None and not batch.untouched:
            self._given.fill(out.given_rows, batch)
            given = out.given
        logits = argmax = asked = None  # in the middle of a prompt nobody asks for the next token
        if batch.last:
            asked = None if len(batch.last) == n else torch.tensor(batch.last, dtype=torch.int32)
            if batch.greedy:
                argmax = out.argmax[: len(batch.last)]
            else:
                logits = batch.room(len(batch.last), self.model.vocabulary)
        counted = self._forward(batch, slice(n), given, logits, argmax, asked, out, batch.reading > 0)
        depths, costs = self._count(batch, out.kept, counted, counted.layers_run)
        keep = None if batch.untouched else out.kept
        return Passed(logits, depths, costs, None if argmax is None else argmax.tolist(), keep)

    def _forward(
        self,
        batch: Batch,
        at: slice | Tensor,
        given: Tensor | None,
        logits: Tensor | None,
        argmax: Tensor | None,
        asked: Tensor | None,
        out: _Buffers,
        reading: bool,
    ) -> Counters:
        """The small pass of the tokens `at`."""
        cache = batch.cache
        return self.model.forward(
            batch.ids[at], batch.positions[at], batch.slots[at], cache.table[0], *_kv(cache), batch.offsets[at],
            given, logits, out.keep, out.score, argmax, asked, reading,
        )  # fmt: skip

    def _in_parts(self, batch: Batch) -> Passed:
        """A pass in several native ones: what is read in tiles first, since what is written sees it."""
        n, depth = batch.size, self.model.depth
        keep = torch.ones(depth, n, dtype=torch.uint8)
        table = None
        if self._given is not None and not batch.untouched:
            table = torch.ones_like(keep)
            self._given.fill(table.numpy(), batch)
        wanted = torch.tensor(batch.last, dtype=torch.int64)
        logits, sums = batch.room(len(wanted), self.model.vocabulary), []
        for at, reading in self._parts(batch):
            (rows,) = torch.isin(wanted, at).nonzero(as_tuple=True)
            asked = torch.searchsorted(at, wanted[rows]).int()
            given = None if table is None else table[:, at]
            # rows side by side, as they mostly are, are written where they belong
            whole = not len(rows) or int(rows[-1] - rows[0]) + 1 == len(rows)
            begin = int(rows[0]) if len(rows) else 0
            found = logits[begin : begin + len(rows)] if whole else torch.empty(len(rows), self.model.vocabulary)
            if reading and self.tiles:
                cache, kept = batch.cache, torch.ones(depth, len(at), dtype=torch.uint8)
                sums.append(self.model.prefill(
                    batch.ids[at], batch.positions[at], batch.slots[at], cache.table[0], *_kv(cache),
                    batch.offsets[at], given, asked, found, kept, torch.empty(depth, len(at)),
                ))  # fmt: skip
            else:
                out = self._out(len(at))
                kept = out.keep
                sums.append(self._forward(batch, at, given, found if len(rows) else None, None, asked, out, reading))
            keep[:, at] = kept
            if not whole:
                logits[rows] = found
        counted = Counters(*(sum(column) for column in zip(*sums, strict=True)))
        kept = keep.numpy()
        depths, costs = self._count(batch, kept, counted, int(kept.any(1).sum()))
        return Passed(logits if batch.last else None, depths, costs, keep=None if batch.untouched else kept)

    def _parts(self, batch: Batch) -> list[tuple[Tensor, bool]]:
        """Which tokens, int64 and rising, run together, and whether they are read."""
        every = torch.arange(batch.size)
        if not self.roles:
            return [(part, False) for part in every.split(self.small)]
        read, written = every[batch.reads], every[~batch.reads]
        parts = [(part, True) for part in ((read,) if self.tiles else read.split(self.small)) if len(part)]
        return parts + [(part, False) for part in written.split(self.small) if len(part)]

    @property
    def break_even(self) -> BreakEven | None:
        """Of the plain runner. Native passes need none: rows are copied together for the kernels anyway."""
        return self.plain.break_even

    @break_even.setter
    def break_even(self, found: BreakEven | None) -> None:
        self.plain.break_even = found

    @property
    def stats(self) -> Stats:
        """The plain runner's, with what native passes ran added to its rows."""
        stats, whole = self.plain.stats, self._whole
        for rows in (stats.rows, stats.attn_rows, stats.mlp_rows):
            rows += self._kept + whole
        stats.kv_rows += np.where(self._sparse, self._kept, self._routed) + whole
        stats.adapter_rows += (self._routed - self._kept) * self._adapters
        self._kept[:] = 0
        self._routed = self._whole = 0
        return stats

    def _count(
        self, batch: Batch, kept: np.ndarray, counted: Counters, layers_run: int
    ) -> tuple[list[int], list[float]]:
        """kept: uint8 [L, N]. Depths and costs of the tokens. Rows are summed up when asked for: a pass is short."""
        stats, n = self.plain.stats, batch.size
        stats.passes += 1
        stats.tokens += n
        stats.native_tokens += n
        stats.layers_run += layers_run
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

    def _out(self, n: int) -> _Buffers:
        if n not in self._buffers:
            depth = self.model.depth
            keep, given = (torch.ones(depth, n, dtype=torch.uint8) for _ in range(2))
            argmax, score = torch.zeros(n, dtype=torch.int64), torch.empty(depth, n)
            self._buffers[n] = _Buffers(argmax, keep, keep.numpy(), score, given, given.numpy())
        return self._buffers[n]


def _kv(cache):  # until the kernels take units
    return [part.view(cache.shape.layers, -1, *part.shape[1:]) for part in (cache.k, cache.v)]


class Costs:
    """True cost of tokens from the visits they kept: `core.cost.exact_cost`, bit for bit (a budget that is held goes by
    each of them), where no token jumps and a visit is kept as a whole."""

    def __init__(self, ledger: Ledger):
        program, self._dense = ledger.program, ledger.dense
        self._work = np.array(ledger.saved, dtype=np.float64)
        """Whole numbers, so that sums are exact in any order."""
        routed = set(program.routed)
        always = sum(work.unit.total for s, work in enumerate(ledger.steps) if s not in routed)
        asked = sum(work.look + work.unit.total for s, work in enumerate(ledger.steps) if s in routed)
        self._least = float(ledger.head + always + asked - self._work.sum())

    def __call__(self, keep: np.ndarray, offsets: np.ndarray) -> list[float]:
        """keep: uint8 [visits, N] -> N numbers."""
        return np.where(offsets == np.inf, 1.0, (self._least + self._work @ keep) / self._dense).tolist()

    def of_one(self, keep: np.ndarray) -> float:
        """keep: uint8 [visits], of a token that does not run the untouched base."""
        return (self._least + float(self._work @ keep)) / self._dense


class GivenTable:
    """The decisions of a method that looks at nothing which the model computes: made before a pass, for all visits."""

    def __init__(self, plain: TorchRunner):
        self._method, self._program = plain.method, plain.program
        steps = [s for s in plain.parts if self._program.steps[s].unit != "mlp"]
        self._parts = [(s, self._program.visit_of[s], plain.parts[s]) for s in steps]
        self._known: dict[float, np.ndarray] = {}

    def fill(self, into: np.ndarray, batch: Batch) -> None:
        """into: uint8 [visits, N], 1 where the visit runs."""
        tokens = batch.tokens
        if not self._method.steady:
            into[:] = self._keeps(tokens)
            return
        for i, offset in enumerate(tokens.offset.tolist()):  # what depends on nothing else is remembered
            if offset not in self._known:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[offset] = self._keeps(tokens[i : i + 1])[:, 0]
            into[:, i] = self._known[offset]

    @torch.no_grad()
    def _keeps(self, tokens: Tokens) -> np.ndarray:
        """uint8 [visits, N]"""
        keep = torch.ones(len(self._program.visits), tokens.count, dtype=torch.uint8)
        if (found := self._method.keeps(self._program, tokens)) is not None:
            keep[[visit for _, visit, _ in self._parts]] = found.cpu().to(torch.uint8)
            return keep.numpy()
        seen, trace = Seen(torch.zeros(tokens.count, 1, device=tokens.offset.device)), Trace(self._program)
        for s, visit, parts in self._parts:
            trace.decisions[s] = self._method.decide(parts, seen, s, tokens, trace)
            keep[visit] = trace.decisions[s].keep
        return keep.numpy()
