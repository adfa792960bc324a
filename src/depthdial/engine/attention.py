"""Attention of some tokens of a pass over the pages of their sequences, in torch.

Rows that decode go in one call, padded to the longest; the rest row by row, a block of queries at a time, so that few
keys are read which none of the block may see. What a token may not see cannot reach it, whatever is there: pages have
had other holders, and a text may hold a token whose K and V are not finite.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.engine.batch import Batch
from depthdial.engine.cache import Cache
from depthdial.engine.layer import capped
from depthdial.kernels.tensors import PAGE, LayerTensors

QUERIES = 256
"""Queries of one layer."""


def attend(q: Tensor, visit: int, batch: Batch, kept: Tensor | None, layer: LayerTensors) -> tuple[Tensor, int]:
    """q: [n, heads, hd] of the tokens `kept` (int64 [n], rising; None: all) -> ([n, heads * hd], keys read).

    K and V of the pass itself are written already. Each token sees the places up to its own at which something is held,
    or those among the last `layer.window`. Keys read counts one for each place of each gathered page.
    """
    bounds = _bounds(batch, kept)
    positions = batch.positions if kept is None else batch.positions[kept]
    out = torch.empty_like(q)
    keys, first = 0, bounds[0]
    if first:
        slots = batch.slots[:first] if kept is None else batch.slots[kept[:first]]
        keys += _singles(out[:first], q[:first], visit, batch.cache, slots.long(), positions[:first], layer)
    for part, (begin, end) in zip(batch.slices[batch.singles :], pairwise(bounds), strict=True):
        for low in range(begin, end, QUERIES):
            high = min(low + QUERIES, end)
            # places rise within a row, so the last query of the block sees the farthest; without gathering it is known
            last = part.start + high - begin - 1 if kept is None else part.start + part.count - 1
            slot = part.row.slot
            assert slot is not None
            keys += _block(
                out[low:high], q[low:high], visit, batch.cache, slot, positions[low:high], part.start + low - begin,
                last, layer,
            )  # fmt: skip
    return out.flatten(1), keys


def _bounds(batch: Batch, kept: Tensor | None) -> list[int]:
    """Where, among the kept tokens, the single ones end and then each slice ends."""
    ends, at = [batch.singles], batch.singles
    for part in batch.slices[batch.singles :]:
        at += part.count
        ends.append(at)
    if kept is None:
        return ends
    return torch.searchsorted(kept, torch.tensor(ends, device=kept.device)).tolist()


def _singles(
    out: Tensor, q: Tensor, visit: int, cache: Cache, slots: Tensor, positions: Tensor, layer: LayerTensors
) -> int:
    """One query of each of n sequences; writes out: [n, heads, hd], as q."""
    n, low = len(q), 0
    if layer.window is not None:
        low = max(0, int(positions.min()) + 1 - layer.window) // PAGE
    units = cache.table[visit, slots, low : int(positions.max()) // PAGE + 1].long()
    k, v = (part[units.clamp_min(0)].transpose(1, 2).flatten(2, 3) for part in (cache.k, cache.v))
    place = torch.arange(low * PAGE, low * PAGE + k.shape[2], device=q.device)  # k: [n, kv_heads, S, hd]
    seen = _seen(place, positions[:, None], layer)
    if visit in cache.shape.sparse:
        seen = seen & _held(cache, units).flatten(1)
    seen = seen[:, None, None]
    grouped = q.view(n, layer.kv_heads, -1, layer.head_dim)
    sinks = None if layer.sinks is None else layer.sinks.view(1, layer.kv_heads, -1, 1)
    out.copy_(_weighed(grouped, k, v, seen, layer, sinks).reshape(q.shape))
    return n * k.shape[2]


def _block(
    out: Tensor, q: Tensor, visit: int, cache: Cache, slot: int, positions: Tensor, first: int, last: int,
    layer: LayerTensors,
) -> int:  # fmt: skip
    """Queries of one sequence, at places within first..last; writes out: [n, heads, hd], as q."""
    n, low = len(q), 0
    if layer.window is not None:
        low = max(0, first + 1 - layer.window) // PAGE
    units = cache.table[visit, slot, low : last // PAGE + 1].long()
    count = last + 1 - low * PAGE
    k, v = (part[units.clamp_min(0)].transpose(0, 1).flatten(1, 2)[None, :, :count] for part in (cache.k, cache.v))
    seen = _seen(torch.arange(low * PAGE, last + 1, device=q.device), positions[:, None], layer)
    if visit in cache.shape.sparse:
        seen = seen & _held(cache, units).flatten()[:count]
    # queries that share a head of K and V stand under one another, so that it is not repeated
    group = layer.heads // layer.kv_heads
    grouped = q.view(n, layer.kv_heads, group, layer.head_dim).permute(1, 2, 0, 3).flatten(1, 2)[None]
    sinks = None if layer.sinks is None else layer.sinks.repeat_interleave(n).view(1, layer.kv_heads, -1, 1)
    found = _weighed(grouped, k, v, seen.repeat(group, 1), layer, sinks)
    out.copy_(found[0].unflatten(1, (group, n)).permute(2, 0, 1, 3).flatten(1, 2))
    return units.numel() * PAGE


def _held(cache: Cache, units: Tensor) -> Tensor:
    """bool [..., PAGE]: at which places of some units K and V are held."""
    assert cache.held is not None
    return cache.held[units.clamp_min(0)].bool() & (units >= 0)[..., None]


def _weighed(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, layer: LayerTensors, sinks: Tensor | None = None) -> Tensor:
    """Attention of q [n, heads, m, hd] over k, v [n, heads, S, hd] where `seen` (bool, broadcast to [n, heads, m, S]).
    What is not seen does not count, whatever it is: a mask adds to scores and multiplies V by 0, and neither takes NaN
    away. sinks: [1, heads, m, 1]."""
    found = _softmaxed(q, k, v, seen, layer, sinks)
    if found.isfinite().all():
        return found
    finite = (k.isfinite() & v.isfinite()).all(-1)[:, :, None]  # [n, heads, 1, S]
    k, v = (t.masked_fill(~finite.transpose(2, 3), 0) for t in (k, v))
    found = _softmaxed(q, k, v, seen, layer, sinks)
    return found.masked_fill((seen & ~finite).any(-1, keepdim=True), float("nan"))


def _softmaxed(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, layer: LayerTensors, sinks: Tensor | None) -> Tensor:
    if sinks is None and layer.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=layer.scale)
    scores = capped((q @ k.mT).float() * layer.scale, layer.softcap).masked_fill(~seen, float("-inf"))
    if sinks is not None:  # keys of no value
        scores = torch.cat((scores, sinks.float().expand(len(q), -1, -1, -1)), -1)
    return scores.softmax(-1)[..., : k.shape[2]].to(v.dtype) @ v


def _seen(place: Tensor, position: Tensor, layer: LayerTensors) -> Tensor:
    seen = place <= position
    return seen if layer.window is None else seen & (place > position - layer.window)
