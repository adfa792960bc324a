"""The definition of a native pass, in plain torch: tokens of any sequences, each by its own way through the visits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from depthdial.kernels.reference import (
    adapter,
    angles,
    attend,
    embed,
    gated_mlp,
    head,
    heads_of,
    linear,
    rms_norm,
    router_number,
    write_kv,
)
from depthdial.kernels.tensors import (
    END,
    PAGE,
    Branch,
    Decide,
    Look,
    ModelTensors,
    Norm,
    PagedCache,
    PassTokens,
    Waiting,
)


class Choice(NamedTuple):
    """keep: bool [N]. score: fp32 [N], sigmoid(number + offset), or as `keep` where no router spoke. run, skip: fp32
    [N], the weights on the update and on the adapter."""

    keep: Tensor
    score: Tensor
    run: Tensor
    skip: Tensor


def choose(branch: Branch, offsets: Tensor, number: Tensor | None = None, given: Tensor | None = None) -> Choice:
    """Who runs a step, of tokens that all wait there. offsets: fp32 [N], +inf keeps a token, with weight 1.

    number: fp32 [N], what the router says; given: uint8 [N], of a step that is decided by a table.
    """
    untouched, one = offsets == float("inf"), torch.ones_like(offsets)
    if branch.by == "ops":
        assert branch.router is not None and number is not None
        shifted = torch.where(untouched, 0, number) + torch.where(untouched, 0, offsets)
        score = torch.where(untouched, 1.0, shifted.sigmoid())
        run, skip = (score, 1 - score) if branch.router.soft else (one, one)
        return Choice(untouched | (shifted > branch.router.cut), score, run, skip)
    keep = untouched | (one > 0 if branch.by != "table" or given is None else given.bool())
    return Choice(keep, keep.float(), one, one)


class Passed(NamedTuple):
    """logits: fp32 [N, V]; keep: uint8 [steps, N]; score: fp32 [steps, N]."""

    logits: Tensor
    keep: Tensor
    score: Tensor


def forward_pass(model: ModelTensors, tokens: PassTokens, cache: PagedCache, decide: Decide | None = None) -> Passed:
    """N tokens through the model; the cache is written in place. Who runs a visit: h = x + attn(z), y = h + run *
    mlp(norm(h)), or y = x + run * (h + mlp(norm(h)) - x) of a `whole` one; who waits and does not: y = x + skip *
    adapter(norm(x)). An attention that is decided on its own is weighed, too."""
    x = embed(tokens.ids, model.embed, model.embed_scale, cache.k.dtype)
    steps, untouched = model.steps, tokens.offsets == float("inf")
    begins = [s for s, step in enumerate(steps) if step.unit != "mlp"]
    at, keeps, scores = torch.zeros_like(tokens.positions), [], []
    for s, (visit, unit, branch) in enumerate(steps):
        layer, here = model.layers[visit], at == s
        z = rms_norm(x, *(layer.before_mlp if unit == "mlp" else layer.before_attn))
        if branch.by == "open":
            assert decide is not None
            free, one = here & ~untouched, torch.ones_like(tokens.offsets)
            keep, *weights = decide(Waiting(s, free, x.float(), z.float()))
            run, skip = (one if weight is None else torch.where(free, weight, 1) for weight in weights)
            choice = Choice(keep | untouched, (keep | untouched).float(), run, skip)
        else:
            looks = branch.router is not None and isinstance(branch.router.ops[0], Look)
            logits = head(x, model.norm, model.head, model.softcap, model.logit_scale) if looks else None
            number = None if branch.router is None else router_number(z, branch.router, logits)
            choice = choose(branch, tokens.offsets, number, None if tokens.given is None else tokens.given[s])
        ran = choice.keep & here & (layer.base | ~untouched)
        keeps.append(ran)
        scores.append(torch.where(untouched, ran.float(), choice.score) * here)
        targets = (branch.then, branch.otherwise)
        then, otherwise = (s + 1 if to is None else to if to == END else begins[to] for to in targets)
        at = torch.where(here, torch.where(untouched, s + 1, torch.where(ran, then, otherwise)).int(), at)
        kept, skipped = ran.nonzero().flatten(), (here & ~ran & ~untouched).nonzero().flatten()
        before = x
        one, residual = torch.ones_like(choice.run), layer.residual
        if unit != "mlp":
            update = _attended(model, visit, x if layer.bare else z, kept, tokens, cache)
            x = _joined(x, kept, residual * update, choice.run if unit == "attn" else one)
        if unit != "attn":
            if layer.adapter is not None:
                update = adapter(rms_norm(x[skipped], *layer.before_mlp), layer.adapter)
                x = _joined(x, skipped, residual * update, choice.skip)
            u = x[kept] if layer.bare else rms_norm(x[kept], *layer.before_mlp)
            update = _normed(gated_mlp(u, layer.gate, layer.up, layer.down, layer.activation), layer.after_mlp)
            x = _joined(x, kept, residual * update, one if layer.whole else choice.run)
            if layer.whole:
                x = torch.where(ran[:, None], torch.lerp(before, x, choice.run[:, None].to(x.dtype)), x)
    logits = head(x, model.norm, model.head, model.softcap, model.logit_scale)
    return Passed(logits, torch.stack(keeps).to(torch.uint8), torch.stack(scores))


def _attended(
    model: ModelTensors, visit: int, z: Tensor, kept: Tensor, tokens: PassTokens, cache: PagedCache
) -> Tensor:
    """The update of the tokens `kept`; K and V of them, or of all, go into the cache. z: what attention takes."""
    layer = model.layers[visit]
    gaps = layer.absent == "nothing"
    table = cache.table[visit if layer.cache is None else layer.cache]
    rope = model.ropes[layer.rope]
    inv_freq = rope.inv_freq
    if tokens.inv_freq is not None:
        inv_freq = tokens.inv_freq[:, list(model.ropes).index(layer.rope)]
    cos, sin = angles(tokens.positions, inv_freq, rope.scaling, torch.float32 if rope.exact else z.dtype)
    writes = kept if gaps else torch.arange(len(z), device=z.device)
    k = heads_of(linear(z[writes], *layer.k), layer.kv_heads, layer.k_norm, layer, cos[writes], sin[writes])
    v = linear(z[writes], *layer.v).unflatten(-1, (layer.kv_heads, -1))
    write_kv(cache.k, cache.v, k, v, table, tokens.sequences[writes], tokens.positions[writes])
    held = cache.held if gaps else None
    if held is not None:
        page = table[tokens.sequences.long(), tokens.positions.long() // PAGE].long()
        held[page, tokens.positions.long() % PAGE] = 0
        held[page[kept], tokens.positions[kept].long() % PAGE] = 1
    q = heads_of(linear(z[kept], *layer.q), layer.heads, layer.q_norm, layer, cos[kept], sin[kept])
    if tokens.query_scale is not None:
        q = q * tokens.query_scale[kept, None, None].to(q.dtype)
    place = table, tokens.sequences[kept], tokens.positions[kept]
    a = attend(q, cache.k, cache.v, *place, layer.scale, layer.window, held, layer.softcap)
    return _normed(linear(a, *layer.o), layer.after_attn)


def _joined(x: Tensor, rows: Tensor, update: Tensor, weight: Tensor) -> Tensor:
    """x with weight * update added at `rows`; update: T [n, d], weight: fp32 [N]."""
    return x.index_copy(0, rows, x[rows] + weight[rows, None].to(x.dtype) * update)


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, *norm)
