"""Run a pass in torch, on any device, for any method: the meaning of the native runners, and the way of large passes.

Tokens that run a unit are gathered, run and put back; what is skipped is never evaluated. K and V are written for
every token, unless the method says that nobody will ask. This file is *not* about which tokens run (`scheduler`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.core.cost import exact_cost
from depthdial.core.decision import Decision, Site
from depthdial.core.layers import Part
from depthdial.core.method import Method
from depthdial.core.route import Route, layer_keep
from depthdial.engine.attention import attend
from depthdial.engine.batch import Batch, Passed
from depthdial.engine.breakeven import BreakEven
from depthdial.engine.stats import Stats
from depthdial.engine.weights import look_up, multiply, size_of
from depthdial.kernels.reference import rms_norm, write_kv
from depthdial.kernels.tensors import Linear, Norm, Rope, Weight
from depthdial.models.block import Block, Spine
from depthdial.models.convert import method_of, route_of, routed

STEP = 128
"""Row counts above this are rounded up to a multiple of it, so that oneDNN makes few kernels and reuses them: 512
tokens of SmolLM2-135M at cost 0.82 take 0.85 of the dense time, and 1.1 of it with steps of 32."""


class Runner(Protocol):
    """Runs passes over a cache and counts what it does."""

    small: int
    """Passes up to this many tokens should not be mixed into larger ones; 0: any pass runs the same way."""
    roles: bool
    """Do tokens of prompts run another way than those written after them, so that K and V have other bits?"""

    @property
    def break_even(self) -> BreakEven | None:
        """Where known: beyond it rows are not gathered, but all are run and those that skip selected away."""
        ...

    @break_even.setter
    def break_even(self, found: BreakEven | None) -> None: ...

    @property
    def stats(self) -> Stats: ...

    def run(self, batch: Batch) -> Passed: ...


class TorchRunner:
    """model: converted; spine: its tensors; step: see STEP.

    Raises ValueError for a method that leaves holes in the cache.
    """

    small = 0
    roles = False

    def __init__(self, model: Any, spine: Spine, stats: Stats, step: int = STEP):
        self.method: Method = method_of(model)
        if self.method.kv not in ("project", "none"):
            raise ValueError(
                f"the engine's cache is rectangular, and this method leaves kv={self.method.kv!r}; "
                "call model.generate, Hugging Face's own loop"
            )
        self.spine, self._stats, self._step = spine, stats, step
        self.break_even: BreakEven | None = None
        self.ledger = route_of(model).ledger
        self.parts = {site: unit.parts for site, unit in routed(model).items()}
        self._angles: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def stats(self) -> Stats:
        """Sums over all passes."""
        return self._stats

    @torch.no_grad()
    def run(self, batch: Batch) -> Passed:
        """One pass. Writes K and V into the cache; the caller owns the places."""
        spine, stats, count = self.spine, self.stats, batch.size
        route = Route(self.ledger, batch.offsets)
        route.begin((count, 1), None, batch.ids.device, batch.ids[:, None])
        route.positions = batch.positions[:, None].long()
        x = look_up(batch.ids, spine.embed, batch.cache.shape.dtype)
        if spine.embed_scale != 1.0:
            x = x * spine.embed_scale
        stats.weight_bytes += x.numel() * x.element_size()
        self._angles = {kind: _angles(batch.positions, rope, x.dtype) for kind, rope in spine.ropes.items()}
        ran = torch.ones(len(spine.blocks), count, dtype=torch.bool, device=x.device)
        for index, block in enumerate(spine.blocks):
            run = self._whole if Site(index, "layer") in self.parts else self._halves
            x = run(x, index, block, batch, route)
            if any(site.layer == index for site in route.decisions):
                ran[index] = layer_keep(route.decisions, index)[:, 0]
        stats.passes += 1
        stats.tokens += count
        stats.layers_run += int(ran.any(1).sum())
        stats.rows += ran.sum(1).cpu().numpy()
        costs = exact_cost(self.ledger, route.decisions, batch.offsets, (count, 1), x.device)
        keep = None if batch.untouched else ran.cpu().numpy()
        return Passed(self._head(x, batch), ran.sum(0).tolist(), costs[:, 0].tolist(), keep=keep)

    def _whole(self, x: Tensor, index: int, block: Block, batch: Batch, route: Route) -> Tensor:
        """A layer that is kept or skipped as one: x + run (layer(x) - x). x: [N, d] -> [N, d]."""
        z = _norm(x, block.before_attn)
        site = Site(index, "layer")
        decision = self._decide(z, site, batch, route)
        kept, padded = self._kept(decision)
        self._write_kv(z, kept if self.method.kv == "none" else None, index, block, batch)
        if kept is None or kept.numel():
            before = x if kept is None else x[kept]
            h = before + self._attention(z, kept, padded, index, block, batch)
            h = h + self._mlp(_norm(h, block.before_mlp), index, block)
            if decision is not None:
                run = decision.run if kept is None else decision.run[kept]
                h = torch.lerp(before, h, run.to(x.dtype))
                h = h if kept is not None else torch.where(decision.keep, h, before)
            x = h if kept is None else x.index_copy_(0, kept, h)
        return self._bypass(x, z, site, decision)

    def _halves(self, x: Tensor, index: int, block: Block, batch: Batch, route: Route) -> Tensor:
        """A layer whose attention and MLP are decided apart, or not at all. x: [N, d] -> [N, d], maybe in place."""
        z = _norm(x, block.before_attn)
        site = Site(index, "attn")
        decision = self._decide(z, site, batch, route)
        kept, padded = self._kept(decision)
        self._write_kv(z, kept if self.method.kv == "none" else None, index, block, batch)
        if kept is None or kept.numel():
            x = _add(x, self._attention(z, kept, padded, index, block, batch), kept, decision)
        x = self._bypass(x, z, site, decision)

        u = _norm(x, block.before_mlp)
        site = Site(index, "mlp")
        decision = self._decide(u, site, batch, route)
        kept, padded = self._kept(decision, kept, padded)
        if kept is None or kept.numel():
            inner = u if padded is None else u[padded]
            x = _add(x, self._mlp(inner, index, block, kept), kept, decision)
        return self._bypass(x, u, site, decision)

    def _mlp(self, u: Tensor, index: int, block: Block, kept: Tensor | None = None) -> Tensor:
        """The update of the kept tokens, [n, d]; u: their normed input, maybe padded."""
        opened = self._linear(u, block.gate)
        opened = F.silu(opened) if block.activation == "silu" else F.gelu(opened, approximate="tanh")
        update = self._linear(opened * self._linear(u, block.up), block.down)
        update = _norm(update if kept is None else update[: len(kept)], block.after_mlp)
        self._stats.mlp_rows[index] += len(update)
        return update

    def _decide(self, x: Tensor, site: Site, batch: Batch, route: Route) -> Decision | None:
        """The method's decision for each token, [N, 1]; None where nothing is decided: all run."""
        if site not in self.parts or batch.untouched:
            return None
        parts = self.parts[site]
        decision = self.method.decide(parts, x[:, None], site, route)
        route.decisions[site] = decision
        self._count_parts(site, "all")
        return decision

    def _kept(
        self, decision: Decision | None, before: Tensor | None = None, padded: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which tokens run, int64 and rising, and the same padded to a round count; None and None: all of them, be it
        because gathering would not pay."""
        if decision is None:
            return None, None
        kept, total = decision.keep[:, 0].nonzero()[:, 0], len(decision.keep)
        count = len(kept)
        if count == total:
            return None, None
        if count and self.break_even is not None and count > self.break_even.share(total) * total:
            return None, None
        if before is not None and padded is not None and torch.equal(kept, before):
            return before, padded
        extra = -count % self._step if count > self._step else 0
        extra = min(extra, len(decision.keep) - count)
        self.stats.padded_rows += extra
        return kept, torch.cat([kept, kept[:1].expand(extra)]) if extra else kept

    def _write_kv(self, z: Tensor, rows: Tensor | None, index: int, block: Block, batch: Batch) -> None:
        """K and V of the tokens `rows` (None: all) into their places."""
        if rows is not None and not rows.numel():
            return
        z, slots, positions = (t if rows is None else t[rows] for t in (z, batch.slots, batch.positions))
        k = self._turned(self._heads(z, block.k, block.kv_heads, block.k_norm), rows, block)
        v = self._heads(z, block.v, block.kv_heads, None)
        cache = batch.cache
        write_kv(cache.k[index], cache.v[index], k, v, cache.table, slots, positions)
        self.stats.kv_rows[index] += len(z)

    def _attention(
        self, z: Tensor, kept: Tensor | None, padded: Tensor | None, index: int, block: Block, batch: Batch
    ) -> Tensor:
        """The update of the kept tokens, [n, d]."""
        inner = z if padded is None else z[padded]
        q = self._turned(self._heads(inner, block.q, block.heads, block.q_norm), padded, block)
        count = len(q) if kept is None else len(kept)
        cache = batch.cache
        seen, keys = attend(q[:count], cache.k[index], cache.v[index], batch, kept, block)
        self.stats.kv_bytes += keys * 2 * block.kv_heads * block.head_dim * cache.k.element_size()
        self._stats.attn_rows[index] += count
        if count < len(q):
            seen = F.pad(seen, (0, 0, 0, len(q) - count))
        return _norm(self._linear(seen, block.o)[:count], block.after_attn)

    def _bypass(self, x: Tensor, given: Tensor, site: Site, decision: Decision | None) -> Tensor:
        """Add what skipped tokens get instead, computed for them alone from the unit's own input."""
        if decision is None:
            return x
        skipped = (~decision.keep[:, 0]).nonzero()[:, 0]
        if not len(skipped):
            return x
        parts = self.parts[site]
        update = self.method.bypass(parts, given[skipped][:, None], site)
        if update is None:
            return x
        self._count_parts(site, "skipped")
        self.stats.adapter_rows[site.layer] += len(skipped)
        weight = decision.skip[skipped].to(x.dtype)
        return x.index_add_(0, skipped, update[:, 0] * weight)

    def _heads(self, z: Tensor, projection: Linear, heads: int, norm: Norm | None) -> Tensor:
        """[N, d] -> [N, heads, hd]"""
        return _norm(self._linear(z, projection).unflatten(-1, (heads, -1)), norm)

    def _turned(self, x: Tensor, rows: Tensor | None, block: Block) -> Tensor:
        """x: [n, heads, hd] of the tokens `rows`, turned by their places; the two halves of a head are pairs."""
        cos, sin = (t if rows is None else t[rows] for t in self._angles[block.rope])
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def _head(self, x: Tensor, batch: Batch) -> Tensor | None:
        """Logits of the tokens that end their rows, [n, V]."""
        spine = self.spine
        if not batch.last:
            return None
        logits = multiply(_norm(x[batch.last], spine.norm), spine.head)
        self._count(spine.head)
        return logits if spine.softcap is None else torch.tanh(logits / spine.softcap) * spine.softcap

    def _linear(self, x: Tensor, of: Linear) -> Tensor:
        self._count(of.weight)
        return multiply(x, *of)

    def _count_parts(self, site: Site, runs_for: str) -> None:
        for part in self.parts[site].values():
            if isinstance(part, Part) and part.runs_for == runs_for:
                self._count(*part.parameters())

    def _count(self, *weights: Weight) -> None:
        self._stats.weight_bytes += sum(map(size_of, weights))


def _norm(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, *norm)


def _add(x: Tensor, update: Tensor, kept: Tensor | None, decision: Decision | None) -> Tensor:
    """x with the weighed update at the kept tokens; x itself is written where they are few."""
    if decision is not None:
        run = decision.run if kept is None else decision.run[kept]
        update = update * run.to(x.dtype)
    if kept is not None:
        return x.index_add_(0, kept, update)
    return x + update if decision is None else torch.where(decision.keep, x + update, x)


def _angles(positions: Tensor, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, hd] of each token's place."""
    angle = positions.float()[:, None] * rope.inv_freq
    return tuple((f(angle) * rope.scaling).to(dtype).repeat(1, 2)[:, None] for f in (torch.cos, torch.sin))  # pyright: ignore[reportReturnType]
