"""Passes on a CPU in native calls of at most 64 tokens; with AMX, what is read of a prompt in tiles, all at once.

Tiles sum in another order, and under narrow weights activations of prompts stay as they are. So which way a token goes
does not follow from the company it has in a pass, but from its place in its own text: prompts are read, what is written
after them never is. A text is the same alone and in any company, however it is cut into passes.

What a native pass decides and what it costs is tested against the torch runner, which says what it means.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdial.engine.batch import Batch, Passed
from depthdial.engine.breakeven import BreakEven
from depthdial.engine.config import Activations
from depthdial.engine.known_ahead import GivenTable
from depthdial.engine.model_tensors import Native
from depthdial.engine.open_steps import OpenSteps
from depthdial.engine.runner import TorchRunner
from depthdial.engine.stats import Stats
from depthdial.engine.token_costs import Costs
from depthdial.kernels.cpu.native import Counters, NativeModel
from depthdial.kernels.passing import PassOutput, PassTokens
from depthdial.kernels.tensors import MAX_TOKENS


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
    """plain: the runner of the same model; native: that model for the kernels.

    Raises ValueError for what the kernels cannot run, kernels.cpu.build.Unavailable where they cannot be built.
    """

    small = MAX_TOKENS

    def __init__(self, plain: TorchRunner, native: Native, isa: str | None = None, activations: Activations = "auto"):
        self.plain, program = plain, plain.program
        self.model = NativeModel(native.tensors, isa=isa)
        self.tiles = self.model.prefills
        self._reads = {"auto": None, "exact": True, "int8": False}[activations]
        """Do all tokens run as those that are read? None: those that are."""
        self._apart = self.tiles or (self.model.narrow and self._reads is None)
        """Does what is read run another way than what is written?"""
        self.by_prompt = plain.by_prompt
        self.roles = self._apart or self.by_prompt
        self._given = GivenTable(plain, native.rows) if plain.method.ahead and plain.parts else None
        self._open = OpenSteps(plain, native) if native.open else None
        self._cost = Costs(plain.ledger, native.rows)
        row_of = {s: i for i, row in enumerate(native.rows) for s in row}
        self._attn, self._mlp = (np.array([row_of[v.steps[end]] for v in program.visits]) for end in (0, -1))
        """The row of each visit's attention and MLP."""
        self._halves = len(native.rows) > len(program.visits)
        visits = range(len(program.visits))
        self._sparse = np.array([v in program.sparse for v in visits])
        self._base = np.array([program.steps[visit.steps[0]].base for visit in program.visits])
        self._adapters = np.array([not plain.bypassed.isdisjoint(visit.steps) for visit in program.visits])
        self._buffers: dict[int, _Buffers] = {}
        self._kept = np.zeros(len(native.rows), dtype=np.int64)
        self._visited, self._replaced = (np.zeros(len(visits), dtype=np.int64) for _ in range(2))
        self._routed = self._whole = 0
        """Tokens that native passes ran since the rows were last summed up: with decisions, and without."""

    @torch.no_grad()
    def run(self, batch: Batch) -> Passed:
        """One pass; see `TorchRunner.run`."""
        n = batch.size
        if n > self.small or (self._apart and 0 < batch.reading < n) or (self.tiles and batch.reading):
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
        tokens = self._tokens(batch, None, given)
        into = PassOutput(out.keep, out.score, logits, argmax)
        counted = self._forward(batch, None, tokens, into, asked, batch.reading > 0)
        return self._passed(batch, out.kept, counted, logits, None if argmax is None else argmax.tolist())

    def _tokens(self, batch: Batch, at: Tensor | None, given: Tensor | None) -> PassTokens:
        """The tokens `at` (None: all) as kernels take them."""
        each = batch.ids, batch.positions, batch.slots, batch.offsets
        ids, positions, slots, offsets = each if at is None else (tensor[at] for tensor in each)
        spine, lengths = self.plain.spine, batch.lengths if at is None or not batch.measures else batch.lengths[:, at]
        scale = None if spine.query_scale is None else spine.query_scale(positions)
        return PassTokens(ids, positions, slots, offsets, given, spine.frequencies(lengths), scale)

    def _forward(
        self, batch: Batch, at: Tensor | None, tokens: PassTokens, out: PassOutput, asked: Tensor | None, reading: bool
    ) -> Counters:
        """The pass of the tokens `at` (None: all): in tiles where they are read, if there are any."""
        decide = None
        if self._open is not None:
            some = batch.tokens if at is None else batch.tokens[at]
            decide = self._open.decider(some, out)
        if reading and self.tiles:
            asked = torch.arange(batch.size, dtype=torch.int32) if asked is None else asked
            return self.model.prefill(tokens, batch.cache.paged, out, asked, decide)
        exact = reading if self._reads is None else self._reads
        return self.model.forward(tokens, batch.cache.paged, out, asked, exact, decide)

    def _in_parts(self, batch: Batch) -> Passed:
        """A pass in several native ones: what is read in tiles first, since what is written sees it."""
        keep = torch.ones(self.model.steps, batch.size, dtype=torch.uint8)
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
            kept = torch.ones(self.model.steps, len(at), dtype=torch.uint8)
            out = PassOutput(kept, torch.empty(kept.shape), found if len(rows) or self.tiles else None)
            tokens = self._tokens(batch, at, given)
            sums.append(self._forward(batch, at, tokens, out, asked, reading))
            keep[:, at] = kept
            if not whole:
                logits[rows] = found
        counted = Counters(*(sum(column) for column in zip(*sums, strict=True)))
        kept = keep.numpy()
        return self._passed(
            batch, kept, counted._replace(layers_run=int(self._visits(kept).any(1).sum())),
            logits if batch.last else None,
        )  # fmt: skip

    def _parts(self, batch: Batch) -> list[tuple[Tensor, bool]]:
        """Which tokens, int64 and rising, run together, and whether they are read."""
        every = torch.arange(batch.size)
        if not self._apart:
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
        stats, whole, kept = self.plain.stats, self._whole * self._base, self._kept
        stats.attn_rows += kept[self._attn] + whole
        stats.mlp_rows += kept[self._mlp] + whole
        stats.rows += (self._visited if self._halves else kept) + whole
        stats.kv_rows += np.where(self._sparse, kept[self._attn] + whole, self._routed + self._whole)
        replaced = self._replaced if self._cost.walks else self._routed - kept[self._mlp]
        stats.adapter_rows += replaced * self._adapters
        for sums in (self._kept, self._visited, self._replaced):
            sums[:] = 0
        self._routed = self._whole = 0
        return stats

    def _visits(self, kept: np.ndarray) -> np.ndarray:
        """uint8 [visits, N], of uint8 [rows, N]: the tokens that ran a visit or a part of it."""
        return kept[self._attn] | kept[self._mlp] if self._halves else kept

    def _passed(
        self, batch: Batch, kept: np.ndarray, counted: Counters, logits: Tensor | None, tokens: list[int] | None = None
    ) -> Passed:
        """What a pass gave, and what it did in the sums; rows are summed up when asked for, as a pass is short.

        kept: uint8 [rows, N]."""
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
            keep = None if self._base.all() else np.repeat(self._base[:, None], n, 1)
            return Passed(logits, [int(self._base.sum())] * n, [self._cost.untouched] * n, tokens, keep)
        self._routed += n
        keep = self._visits(kept)
        if n == 1:  # what numpy takes to begin is not short
            self._kept += kept[:, 0]
            depths, costs = [int(np.count_nonzero(keep))], [self._cost.of_one(kept[:, 0])]
        else:
            self._kept += kept.sum(1, dtype=np.int64)
            depths = keep.sum(0, dtype=np.int64).tolist()
            costs = self._cost(kept, batch.offsets.numpy())
        if self._halves:
            self._visited += keep.sum(1, dtype=np.int64)
        if self._cost.walks and self._adapters.any():
            for column in kept.T[batch.offsets.numpy() != np.inf]:
                self._replaced[self._cost.bypassed(column)] += 1
        return Passed(logits, depths, costs, tokens, keep)

    def _out(self, n: int) -> _Buffers:
        if n not in self._buffers:
            keep, given = (torch.ones(self.model.steps, n, dtype=torch.uint8) for _ in range(2))
            argmax, score = torch.zeros(n, dtype=torch.int64), torch.empty(self.model.steps, n)
            self._buffers[n] = _Buffers(argmax, keep, keep.numpy(), score, given, given.numpy())
        return self._buffers[n]
