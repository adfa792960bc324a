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
    PAGE,
    AdapterTensors,
    Int8,
    LayerTensors,
    Linear,
    ModelTensors,
    Norm,
    Rope,
    RouterTensors,
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
) -> Tensor:
    """q: T [N, heads, hd] -> T [N, heads * hd]: each token over positions 0..its own of its sequence, or the last
    `window` of them. Caches of one layer: T [pages, kv_heads, PAGE, hd]."""
    out = torch.empty_like(q)
    group = q.shape[1] // k_cache.shape[1]
    for n, (sequence, position) in enumerate(zip(sequences.tolist(), positions.tolist(), strict=True)):
        pages = page_table[sequence, : position // PAGE + 1].long()
        start = 0 if window is None else max(0, position + 1 - window)
        seen = (cache[pages].transpose(1, 2).flatten(0, 1)[start : position + 1] for cache in (k_cache, v_cache))
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


def router_logit(z: Tensor, router: RouterTensors) -> Tensor:
    """z: T [N, d], the normed input of attention -> fp32 [N]."""
    if router.order == "linear":
        return F.linear(z.float(), router.enc.float()) @ router.folded.float() + router.bias
    code = F.linear(z, router.enc.to(z.dtype)).float()
    if router.order == "norm_tanh":
        code = F.rms_norm(code, router.scale.shape, router.scale.float(), router.eps).tanh()
    else:
        code = F.rms_norm(code.tanh(), router.scale.shape, router.scale.float(), router.eps)
    return code @ router.folded.float() + router.bias


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


class Decided(NamedTuple):
    """keep: bool [N]. score: fp32 [N], sigmoid(logit + offset), or 1 and 0 where no router spoke. run, skip: fp32 [N],
    the weights on MLP and adapter."""

    keep: Tensor
    score: Tensor
    run: Tensor
    skip: Tensor


def decide(z: Tensor, layer: LayerTensors, offsets: Tensor, given: Tensor | None = None) -> Decided:
    """Which rows run the layer. z: T [N, d]; offsets: fp32 [N], +inf keeps a row untouched (weights 1).

    given: uint8 [N], the decision at a layer without a router.
    """
    untouched = offsets == float("inf")
    if layer.router is None:
        keep = untouched | (torch.ones_like(untouched) if given is None else given.bool())
        return Decided(keep, keep.float(), torch.ones_like(offsets), torch.ones_like(offsets))
    shifted = torch.where(untouched, 0, router_logit(z, layer.router) + torch.where(untouched, 0, offsets))
    score = torch.where(untouched, 1.0, shifted.sigmoid())
    keep = shifted > layer.router.cut
    if layer.router.soft:
        return Decided(keep | untouched, score, score, 1 - score)
    return Decided(keep | untouched, score, torch.ones_like(score), torch.ones_like(score))


class Passed(NamedTuple):
    """logits: fp32 [N, V]; keep: uint8 [L, N]; score: fp32 [L, N]."""

    logits: Tensor
    keep: Tensor
    score: Tensor


def forward_pass(
    model: ModelTensors,
    ids: Tensor,
    positions: Tensor,
    sequences: Tensor,
    page_table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    offsets: Tensor,
    given: Tensor | None = None,
) -> Passed:
    """N tokens through the whole model; the caches (T [L, pages, kv_heads, PAGE, hd]) are written in place.

    ids: int64 [N]; positions, sequences: int [N]; offsets: fp32 [N]; given: uint8 [L, N]. Kept rows:
    h = x + attn(z), y = h + run * mlp(norm(h)); skipped: K and V are written, y = x + skip * adapter(norm(x)).
    """
    x = embed(ids, model.embed, model.embed_scale, k_cache.dtype)
    decisions = []
    for index, layer in enumerate(model.layers):
        z = rms_norm(x, *layer.before_attn)
        decided = decide(z, layer, offsets, None if given is None else given[index])
        decisions.append(decided)
        caches = k_cache[index], v_cache[index]
        angles = model.ropes[layer.rope]
        kept = decided.keep.nonzero().flatten()
        writes = kept if layer.sparse_kv else torch.arange(len(z), device=z.device)
        k = _heads(z[writes], layer.k, layer.kv_heads, layer.k_norm, positions[writes], angles)
        v = _heads(z[writes], layer.v, layer.kv_heads)
        write_kv(*caches, k, v, page_table, sequences[writes], positions[writes])
        skipped = (~decided.keep).nonzero().flatten()
        x = x.clone()
        if kept.numel():
            q = _heads(z[kept], layer.q, layer.heads, layer.q_norm, positions[kept], angles)
            a = attend(q, *caches, page_table, sequences[kept], positions[kept], layer.scale, layer.window)
            h = x[kept] + _normed(linear(a, *layer.o), layer.after_attn)
            u = rms_norm(h, *layer.before_mlp)
            update = _normed(gated_mlp(u, layer.gate, layer.up, layer.down, layer.activation), layer.after_mlp)
            x[kept] = h + decided.run[kept, None].to(x.dtype) * update
        if skipped.numel() and layer.adapter is not None:
            update = adapter(rms_norm(x[skipped], *layer.before_mlp), layer.adapter)
            x[skipped] = x[skipped] + decided.skip[skipped, None].to(x.dtype) * update
    keep = torch.stack([decided.keep for decided in decisions]).to(torch.uint8)
    score = torch.stack([decided.score for decided in decisions])
    return Passed(head(x, model.norm, model.head, model.softcap), keep, score)


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
