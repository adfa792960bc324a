"""The definition of every kernel, in plain torch: what the native and the Triton kernels are tested against.

N tokens of any sequences are flattened into the rows of one pass. T is the dtype of the model (bfloat16 or float32);
rounding follows Hugging Face: norms in fp32 and rounded, outputs of linear maps rounded, softmax in fp32. Nothing here
is fast, and shapes are not checked: the callers are tests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.kernels.tensors import (
    END,
    PAGE,
    Act,
    AdapterTensors,
    Branch,
    Decide,
    Dense,
    Int8,
    Linear,
    Look,
    ModelTensors,
    Norm,
    PagedCache,
    PassTokens,
    Rope,
    RouterTensors,
    Waiting,
    Weight,
)

BLOCK = 64
"""Activations that share one scale in `int8_linear`."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool = False) -> Tensor:
    """x: T [..., d] -> T [..., d]. plus_one: Gemma's (1 + weight), multiplied in fp32."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if plus_one:
        return (normed * (1.0 + weight.float())).to(x.dtype)
    return weight.to(x.dtype) * normed.to(x.dtype)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x: T [N, in], weight: T or Int8 [out, in], bias [out] -> T [N, out]."""
    if isinstance(weight, Int8):
        return int8_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def int8_pack(weight: Tensor) -> Int8:
    """[out, in] -> Int8: symmetric, one scale a row, rounded half to even."""
    wide = weight.float()
    scale = (wide.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return Int8((wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale)


def int8_quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: [N, in] -> (whole numbers within -127..127, fp32 [N, blocks, BLOCK], padded by 0; scale, fp32 [N, blocks])."""
    blocks = F.pad(x.float(), (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (blocks * inverse[..., None]).round().clamp(-127, 127), scale


def int8_linear(x: Tensor, weight: Int8, bias: Tensor | None = None) -> Tensor:
    """x: T [N, in] -> T [N, out]. Activations are quantised too, in blocks of 64 with a scale each; sums are exact
    within a block and fp32 across them."""
    values, scale = int8_quantise(x)
    rows = F.pad(weight.values.float(), (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    out = torch.einsum("nbk,obk,nb->no", values, rows, scale) * weight.scale
    return (out if bias is None else out + bias.float()).to(x.dtype)


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float = 1.0) -> Tensor:
    """x: T [N, heads, hd], positions: [N], inv_freq: fp32 [hd/2] -> T [N, heads, hd]. The two halves are paired."""
    angle = positions.float()[:, None] * inv_freq.float()
    cos, sin = ((f(angle) * scaling).to(x.dtype).repeat(1, 2)[:, None] for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def write_kv(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, page_table: Tensor, sequences: Tensor, positions: Tensor
) -> None:
    """Writes k, v (T [N, kv_heads, hd]) of one layer into its caches (T [pages, kv_heads, PAGE, hd]), in place.

    page_table: int32 [sequences, pages of a sequence]; sequences: [N], row of the table; positions: [N].
    """
    place = positions.long()
    page = page_table[sequences.long(), place // PAGE].long()
    k_cache[page, :, place % PAGE] = k
    v_cache[page, :, place % PAGE] = v


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    sequences: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None = None,
    held: Tensor | None = None,
) -> Tensor:
    """q: T [N, heads, hd] -> T [N, heads * hd]: each token over positions 0..its own of its sequence, or the last
    `window` of them, as far as there are pages and `held` (uint8 [pages, PAGE]) says so. Caches of one visit: T [pages,
    kv_heads, PAGE, hd]."""
    out = torch.empty_like(q)
    group = q.shape[1] // k_cache.shape[1]
    for n, (sequence, position) in enumerate(zip(sequences.tolist(), positions.tolist(), strict=True)):
        start = 0 if window is None else max(0, position + 1 - window)
        place = torch.arange(start, position + 1, device=q.device)
        page, slot = page_table[sequence].long()[place // PAGE], place % PAGE
        there = page >= 0 if held is None else (page >= 0) & held[page, slot].bool()
        seen = (cache[page[there], :, slot[there]] for cache in (k_cache, v_cache))
        k, v = (part.float().repeat_interleave(group, 1) for part in seen)  # [seen, heads, hd]
        weight = (torch.einsum("hd,shd->hs", q[n].float(), k) * scale).softmax(-1)
        out[n] = torch.einsum("hs,shd->hd", weight, v).to(q.dtype)
    return out.flatten(1)


def gated_mlp(x: Tensor, gate: Linear, up: Linear, down: Linear, activation: str = "silu") -> Tensor:
    """x: T [N, d] -> T [N, d]: down(act(gate x) * (up x))."""
    opened = linear(x, *gate)
    opened = F.silu(opened) if activation == "silu" else F.gelu(opened, approximate="tanh")
    return linear(opened * linear(x, *up), *down)


def adapter(u: Tensor, parts: AdapterTensors) -> Tensor:
    """u: T [N, d] -> T [N, d]."""
    return gated_mlp(u, Linear(parts.gate), Linear(parts.up), Linear(parts.down))


def router_number(z: Tensor, router: RouterTensors, logits: Tensor | None = None) -> Tensor:
    """z: T [N, d], the unit's normed input; logits: fp32 [N, V], for a router that looks -> fp32 [N]."""
    first, *later = router.ops
    if isinstance(first, Look):
        assert logits is not None
        top = logits[:, : first.rows].softmax(-1).topk(2).values
        code = torch.stack((top[:, 0], top[:, 0] - top[:, 1]), -1)
    else:
        assert isinstance(first, Dense)
        bias = None if first.bias is None else first.bias.to(first.weight.dtype)
        code = F.linear(z.to(first.weight.dtype), first.weight, bias).float()
    for op in later:
        if isinstance(op, Dense):
            code = F.linear(code, op.weight.float(), op.bias)
        elif isinstance(op, Norm):
            code = F.rms_norm(code, op.weight.shape, op.weight.float(), op.eps)
        else:
            assert isinstance(op, Act)
            code = getattr(torch if op.name in ("tanh", "sigmoid") else F, op.name)(code)
    return code[:, 0]


def embed(ids: Tensor, table: Weight, scale: float, dtype: torch.dtype) -> Tensor:
    """ids: int64 [N] -> T [N, d]. The scale is rounded to T first, as Hugging Face does."""
    if isinstance(table, Int8):
        rows = (table.values[ids].float() * table.scale[ids, None]).to(dtype)
    else:
        rows = table[ids]
    return rows if scale == 1.0 else rows * torch.tensor(scale, dtype=dtype, device=rows.device)


def head(x: Tensor, norm: Norm, weight: Weight, softcap: float | None = None) -> Tensor:
    """x: T [N, d] -> logits, fp32 [N, V], not rounded to T."""
    normed = rms_norm(x, *norm)
    logits = linear(normed.float(), weight if isinstance(weight, Int8) else weight.float())
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


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
            logits = head(x, model.norm, model.head, model.softcap) if looks else None
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
        if unit != "mlp":
            update = _attended(model, visit, z, kept, tokens, cache)
            x = _joined(x, kept, update, choice.run if unit == "attn" else torch.ones_like(choice.run))
        if unit != "attn":
            if layer.adapter is not None:
                update = adapter(rms_norm(x[skipped], *layer.before_mlp), layer.adapter)
                x = _joined(x, skipped, update, choice.skip)
            u = rms_norm(x[kept], *layer.before_mlp)
            update = _normed(gated_mlp(u, layer.gate, layer.up, layer.down, layer.activation), layer.after_mlp)
            x = _joined(x, kept, update, torch.ones_like(choice.run) if layer.whole else choice.run)
            if layer.whole:
                x = torch.where(ran[:, None], torch.lerp(before, x, choice.run[:, None].to(x.dtype)), x)
    logits = head(x, model.norm, model.head, model.softcap)
    return Passed(logits, torch.stack(keeps).to(torch.uint8), torch.stack(scores))


def _attended(
    model: ModelTensors, visit: int, z: Tensor, kept: Tensor, tokens: PassTokens, cache: PagedCache
) -> Tensor:
    """The update of the tokens `kept`; K and V of them, or of all, go into the cache."""
    layer = model.layers[visit]
    gaps = layer.absent == "nothing"
    angles, table = model.ropes[layer.rope], cache.table[visit if layer.cache is None else layer.cache]
    writes = kept if gaps else torch.arange(len(z), device=z.device)
    k = _heads(z[writes], layer.k, layer.kv_heads, layer.k_norm, tokens.positions[writes], angles)
    v = _heads(z[writes], layer.v, layer.kv_heads)
    write_kv(cache.k, cache.v, k, v, table, tokens.sequences[writes], tokens.positions[writes])
    held = cache.held if gaps else None
    if held is not None:
        page = table[tokens.sequences.long(), tokens.positions.long() // PAGE].long()
        held[page, tokens.positions.long() % PAGE] = 0
        held[page[kept], tokens.positions[kept].long() % PAGE] = 1
    q = _heads(z[kept], layer.q, layer.heads, layer.q_norm, tokens.positions[kept], angles)
    place = table, tokens.sequences[kept], tokens.positions[kept]
    a = attend(q, cache.k, cache.v, *place, layer.scale, layer.window, held)
    return _normed(linear(a, *layer.o), layer.after_attn)


def _joined(x: Tensor, rows: Tensor, update: Tensor, weight: Tensor) -> Tensor:
    """x with weight * update added at `rows`; update: T [n, d], weight: fp32 [N]."""
    return x.index_copy(0, rows, x[rows] + weight[rows, None].to(x.dtype) * update)


def _heads(
    z: Tensor,
    projection: Linear,
    heads: int,
    norm: Norm | None = None,
    positions: Tensor | None = None,
    angles: Rope | None = None,
) -> Tensor:
    """z: T [N, d] -> T [N, heads, hd], normed and rotated where asked."""
    x = _normed(linear(z, *projection).unflatten(-1, (heads, -1)), norm)
    return x if positions is None or angles is None else rope(x, positions, *angles)


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, *norm)
