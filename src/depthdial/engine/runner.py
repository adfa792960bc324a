"""Run a pass in torch, on any device, for any method: the meaning of the native runners, and the way of large passes.

Tokens that run a step are gathered, run and put back; what is skipped, jumped over or left is never evaluated. K and V
are written for every token of a step, unless it says that what does not run leaves nothing. This file is *not* about
which tokens run (`scheduler`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from depthdial.core.cost import exact_cost
from depthdial.core.decision import Decision
from depthdial.core.layers import Part
from depthdial.core.method import Seen
from depthdial.core.routed import Pass
from depthdial.engine.attention import attend
from depthdial.engine.batch import Batch, Passed
from depthdial.engine.breakeven import BreakEven
from depthdial.engine.layer import Attend, Forward, scaled
from depthdial.engine.maths import Maths
from depthdial.engine.probe import bypassed_steps
from depthdial.engine.stats import Stats
from depthdial.engine.weights import size_of
from depthdial.kernels.tensors import PAGE, ModelTensors, rows_of
from depthdial.models.convert import converted_of

STEP = 128
"""Row counts above this are rounded up to a multiple of it, so that oneDNN makes few kernels and reuses them: 512
tokens of SmolLM2-135M at cost 0.82 take 0.85 of the dense time, and 1.1 of it with steps of 32."""


class Runner(Protocol):
    """Runs passes over a cache and counts what it does."""

    small: int
    """Passes up to this many tokens should not be mixed into larger ones; 0: any pass runs the same way."""
    roles: bool
    """Do tokens of prompts run another way than those written after them, so that K and V have other bits?"""
    by_prompt: bool
    """Is it a method's decision that does, by where the prompt ends?"""

    @property
    def break_even(self) -> BreakEven | None:
        """Where known: beyond it rows are not gathered, but all are run and those that skip selected away."""
        ...

    @break_even.setter
    def break_even(self, found: BreakEven | None) -> None: ...

    @property
    def stats(self) -> Stats: ...

    def run(self, batch: Batch) -> Passed: ...


class _At(NamedTuple):
    """A pass at one step."""

    rows: Tensor | None
    """int64, rising: the tokens that wait here; None: all."""
    of: Tensor | None
    """int64, rising: the tokens that `z` is of; None: all."""
    z: Tensor
    """T [n, d]: what the step takes, normed where the model does."""
    decision: Decision | None
    """Of all tokens of the pass; None: all that wait here run."""
    kept: Tensor | None
    """int64, rising: the tokens that run; None: all, be it because to gather them would not pay."""
    padded: Tensor | None
    """`kept`, padded to a round count."""

    def take(self, tokens: Tensor | None) -> Tensor:
        """`z` of some tokens."""
        return _some(self.z, tokens if self.of is None or tokens is None else torch.searchsorted(self.of, tokens))

    @property
    def runs(self) -> bool:
        return self.kept is None or len(self.kept) > 0


class TorchRunner:
    """model: converted; spine: its tensors, one block for each visit of the program; step: see STEP.

    Raises ValueError for a method that decides by whole rows.
    """

    small = 0

    def __init__(self, model: Any, spine: ModelTensors, stats: Stats, step: int = STEP):
        converted = converted_of(model)
        self.method, self.program, self.ledger = converted.method, converted.program, converted.ledger
        self.roles = self.by_prompt = "prompt" in self.method.reads
        self.spine, self._stats, self._step = spine, stats, step
        self.break_even: BreakEven | None = None
        self.parts = {s: unit.parts for s, unit in converted.routed.items()}
        self._part_bytes = {
            (s, when): sum(size_of(w) for part in own.values() if isinstance(part, Part) and part.runs_for == when
                           for w in part.parameters())
            for s, own in self.parts.items() for when in ("all", "skipped")
        }  # fmt: skip
        self.bypassed = bypassed_steps(self.method, self.program, self.parts, spine.norm.weight, rows_of(spine.head))
        self.maths = Maths(spine, stats)

    @property
    def stats(self) -> Stats:
        """Sums over all passes."""
        return self._stats

    @torch.no_grad()
    def run(self, batch: Batch) -> Passed:
        """One pass. Writes K and V into the cache; the caller owns the places."""
        stats, running = self.stats, Pass(self.program, batch.tokens)
        x = self.stream(batch, running)
        ran = running.trace.keep(batch.offsets)
        stats.passes, stats.tokens = stats.passes + 1, stats.tokens + batch.size
        stats.layers_run += int(ran.any(1).sum())
        stats.rows += ran.sum(1).cpu().numpy()
        costs = exact_cost(self.ledger, running.tokens, running.trace)
        keep = None if ran.all() else ran.cpu().numpy()
        logits = self.maths.logits(x[batch.last]) if batch.last else None
        return Passed(logits, ran.sum(0).tolist(), costs.tolist(), keep=keep)

    def stream(self, batch: Batch, running: Pass) -> Tensor:
        """The residual stream after all steps, T [N, d]."""
        x = self.maths.begin(batch.ids, batch.positions, batch.cache.shape.dtype, batch.lengths)
        for visit in self.program.visits:
            run = self._whole if len(visit.steps) == 1 else self._halves
            x = run(x, visit.steps, batch, running)
        return x

    def _whole(self, x: Tensor, steps: Sequence[int], batch: Batch, running: Pass) -> Tensor:
        """A layer that is kept or skipped as one: x + run (layer(x) - x). x: [N, d] -> [N, d], maybe in place."""
        (s,) = steps
        if (at := self._at_attention(x, s, batch, running)) is None:
            return x
        kept, decision = at.kept, at.decision
        if at.runs:
            before = _some(x, kept)
            h = self._forward(s).whole(before, at.take(at.padded), at.padded, self._attend(at, s, batch))
            self._stats.mlp_rows[self.program.visit_of[s]] += len(h)
            if decision is not None:
                h = torch.lerp(before, h, _some(decision.run, kept)[:, None].to(x.dtype))
                h = h if kept is not None else torch.where(decision.keep[:, None], h, before)
            x = h if kept is None else x.index_copy_(0, kept, h)
        return self._bypass(x, at, s, running)

    def _halves(self, x: Tensor, steps: Sequence[int], batch: Batch, running: Pass) -> Tensor:
        """A layer whose attention and MLP are decided apart. x: [N, d] -> [N, d], maybe in place."""
        attn, mlp = steps
        at = self._at_attention(x, attn, batch, running)
        if at is not None:
            if at.runs:
                z, count = at.take(at.padded), None if at.kept is None else len(at.kept)
                x = _add(x, self._forward(attn).attention(z, at.padded, self._attend(at, attn, batch), count), at)
            x = self._bypass(x, at, attn, running)
        rows = _waiting(running, mlp)
        if rows is not None and not len(rows):
            return x
        u = self._forward(mlp).taken(_some(x, rows), "mlp")
        decision = self._decide(x, u, rows, mlp, running)
        after = _At(rows, rows, u, decision, *self._kept(decision, rows, at))
        if after.runs:
            z, count = after.take(after.padded), None if after.kept is None else len(after.kept)
            x = _add(x, self._forward(mlp).mlp(z, count), after)
            self._stats.mlp_rows[self.program.visit_of[mlp]] += len(z) if count is None else count
        return self._bypass(x, after, mlp, running)

    def _at_attention(self, x: Tensor, s: int, batch: Batch, running: Pass) -> _At | None:
        """Decide at a step with attention, and write its K and V; None where no token waits there."""
        rows = _waiting(running, s)
        projects = self.program.visit_of[s] not in self.program.sparse
        of = None if projects else rows
        z = self._forward(s).taken(_some(x, of), "attn")
        if rows is not None and not len(rows):
            self._write_kv(_At(rows, of, z, None, rows, rows), of, s, batch)
            return None
        decision = self._decide(x, _some(z, rows) if projects else z, rows, s, running)
        at = _At(rows, of, z, decision, *self._kept(decision, rows))
        leaves = None if projects else rows if decision is None else decision.keep.nonzero()[:, 0]
        self._write_kv(at, leaves, s, batch)
        return at

    def _decide(self, x: Tensor, z: Tensor, rows: Tensor | None, s: int, running: Pass) -> Decision | None:
        """The method's decision, of all tokens of the pass; None where nothing is decided: all that wait here run.

        x: [N, d], the stream; z: [n, d], what the step takes of the tokens `rows`."""
        step, tokens, trace = self.program.steps[s], running.tokens, running.trace
        if step.routed == "no" or (running.untouched and step.base):
            running.move(s, None)
            return None
        full, some = tokens.full, rows  # those that run the base are not asked about
        base = full if rows is None else torch.zeros_like(full).index_copy(0, rows, full[rows])
        if base.any():
            asked = ~full if rows is None else ~full[rows]
            some, z = asked.nonzero()[:, 0] if rows is None else rows[asked], z[asked]
        decision = Decision.hard(torch.zeros_like(base)).within(torch.zeros_like(base))
        if some is None or len(some):
            logits = self.maths.logits(_some(x, some), step.head_rows).float() if "logits" in step.shows else None
            of = (tokens, trace) if some is None else (tokens[some], trace[some])
            decision = self.method.decide(self.parts[s], Seen(self._forward(s).shown(z, step.unit), logits), s, *of)
            self.count_parts(s, "all")
            decision = decision if some is None else decision.spread(some, tokens.count)
        trace.decisions[s] = decision = decision.running(base) if step.base else decision
        running.move(s, decision.keep)
        return decision

    def _kept(
        self, decision: Decision | None, rows: Tensor | None, before: _At | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which tokens run, int64 and rising, and the same padded to a round count; None and None: all of them, be it
        because gathering would not pay."""
        if (kept := rows if decision is None else decision.keep.nonzero()[:, 0]) is None:
            return None, None
        count, total = len(kept), len(kept) if decision is None else len(decision.keep)
        if rows is None:
            share = 1.0 if self.break_even is None else self.break_even.share(total)
            if count == total or (count and count > share * total):
                return None, None
        if before is not None and before.kept is not None and torch.equal(kept, before.kept):
            return before.kept, before.padded
        extra = min(-count % self._step if count > self._step else 0, total - count)
        self.stats.padded_rows += extra
        return kept, torch.cat([kept, kept[:1].expand(extra)]) if extra else kept

    def _write_kv(self, at: _At, rows: Tensor | None, s: int, batch: Batch) -> None:
        """K and V of the tokens `rows` (None: all) into their places, where the others leave nothing."""
        visit, cache, positions = self.program.visit_of[s], batch.cache, batch.positions.long()
        if cache.held is not None and visit in self.program.sparse:
            leaves = torch.ones_like(positions) if rows is None else torch.zeros_like(positions).index_fill(0, rows, 1)
            cache.note(visit, batch.slots, positions, leaves)
        if rows is not None and not rows.numel():
            return
        z = at.take(rows)
        slots, places = _some(batch.slots, rows).long(), _some(positions, rows)
        units = cache.table[visit][slots, places // PAGE].long()
        for part, each in zip((cache.k, cache.v), self._forward(s).keys(z, rows), strict=True):
            part[units, :, places % PAGE] = each
        self.stats.kv_rows[visit] += len(z)

    def _attend(self, at: _At, s: int, batch: Batch) -> Attend:
        """Attention of the kept tokens over the pages of their sequences."""
        visit, layer, itemsize = self.program.visit_of[s], self._forward(s).layer, batch.cache.k.element_size()

        def over_pages(q: Tensor) -> Tensor:
            seen, keys = attend(q, visit, batch, at.kept, layer)
            self._stats.kv_bytes += keys * 2 * layer.kv_heads * layer.head_dim * itemsize
            self._stats.attn_rows[visit] += len(q)
            return seen

        return over_pages

    def _bypass(self, x: Tensor, at: _At, s: int, running: Pass) -> Tensor:
        """Add what skipped tokens get instead, computed for them alone from the unit's own input."""
        if at.decision is None:
            return x
        skips = ~at.decision.keep if self.program.steps[s].base else ~at.decision.keep & ~running.tokens.full
        skipped = skips.nonzero()[:, 0] if at.rows is None else at.rows[skips[at.rows]]
        if not len(skipped):
            return x
        forward, unit = self._forward(s), self.program.steps[s].unit
        update = self.method.bypass(self.parts[s], forward.shown(at.take(skipped), unit), s)
        if update is None:
            return x
        update = update if unit == "layer" else scaled(update, forward.layer.residual)
        self.count_parts(s, "skipped")
        self.stats.adapter_rows[self.program.visit_of[s]] += len(skipped)
        return x.index_add_(0, skipped, update * at.decision.skip[skipped, None].to(x.dtype))

    def _forward(self, s: int) -> Forward:
        return self.maths.of(self.spine.layers[self.program.visit_of[s]])

    def count_parts(self, s: int, runs_for: str) -> None:
        """Bytes of the parts of a step that run for all its tokens, or for those that are skipped."""
        self._stats.weight_bytes += self._part_bytes[s, runs_for]


def _waiting(running: Pass, s: int) -> Tensor | None:
    """The tokens that wait at a step, int64 and rising; None: all."""
    here = running.here(s)
    return None if here is None or here.all() else here.nonzero()[:, 0]


def _some(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _add(x: Tensor, update: Tensor, at: _At) -> Tensor:
    """x with the weighed update at the kept tokens; x itself is written where they are few."""
    kept, decision = at.kept, at.decision
    if decision is not None:
        update = update * _some(decision.run, kept)[:, None].to(x.dtype)
    if kept is not None:
        return x.index_add_(0, kept, update)
    return x + update if decision is None else torch.where(decision.keep[:, None], x + update, x)
