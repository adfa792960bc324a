"""The definition of every kernel, in plain torch: what the native and the Triton kernels are tested against.

N tokens of any sequences are flattened into the rows of one pass. T is the dtype of the model (bfloat16 or float32);
rounding follows Hugging Face: norms in fp32 and rounded, outputs of linear maps rounded, softmax in fp32. Nothing here
is fast, and shapes are not checked: the callers are tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.kernels.tensors import (
    PAGE,
    Act,
    Activation,
    AdapterTensors,
    Dense,
    Int8,
    LayerTensors,
    Linear,
    Look,
    Norm,
    Pairs,
    RouterTensors,
    Weight,
)

BLOCK = 64
"""Activations that share one scale in `int8_linear`."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool = False, once: bool = False) -> Tensor:
    """x: T [..., d] -> T [..., d]; see `Norm`."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if plus_one or once:
        return (normed * (weight.float() + plus_one)).to(x.dtype)
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


def rope(
    x: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float = 1.0, exact: bool = False, pairs: Pairs = "halves"
) -> Tensor:
    """x: T [N, heads, hd], positions: [N], inv_freq: fp32 [r/2] or [N, r/2] -> T [N, heads, hd], its first r numbers
    turned; see `Rope`."""
    return turned(x, *angles(positions, inv_freq, scaling, torch.float32 if exact else x.dtype), pairs)


def angles(positions: Tensor, inv_freq: Tensor, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of each token's place, [N, 1, r/2]; inv_freq: fp32 [r/2] or [N, r/2]."""
    angle = positions.float()[:, None] * inv_freq.float()
    return (angle.cos() * scaling).to(dtype)[:, None], (angle.sin() * scaling).to(dtype)[:, None]


def turned(x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs = "halves") -> Tensor:
    """x: T [N, heads, hd] with its first r numbers turned by cos and sin, [N, 1, r/2]."""
    r, neighbours = 2 * cos.shape[-1], pairs == "neighbours"
    first, second = (x[..., 0:r:2], x[..., 1:r:2]) if neighbours else x[..., :r].chunk(2, -1)
    parts = first * cos - second * sin, second * cos + first * sin
    part = torch.stack(parts, -1).flatten(-2) if neighbours else torch.cat(parts, -1)
    return torch.cat((part.to(x.dtype), x[..., r:]), -1) if r < x.shape[-1] else part.to(x.dtype)


def heads_of(x: Tensor, heads: int, norm: Norm | None, layer: LayerTensors, cos: Tensor, sin: Tensor) -> Tensor:
    """x: T [N, heads * hd], q or k -> T [N, heads, hd], normed and turned as the layer does."""
    if norm is not None and norm.weight.numel() == x.shape[-1]:
        x, norm = rms_norm(x, *norm), None
    x = x.unflatten(-1, (heads, -1))
    if norm is None or layer.norms_turned:
        x = turned(x, cos, sin, layer.pairs)
        return x if norm is None else rms_norm(x, *norm)
    return turned(rms_norm(x, *norm), cos, sin, layer.pairs)


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
    softcap: float | None = None,
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
        scores = capped(torch.einsum("hd,shd->hs", q[n].float(), k) * scale, softcap)
        out[n] = torch.einsum("hs,shd->hd", scores.softmax(-1), v).to(q.dtype)
    return out.flatten(1)


def capped(x: Tensor, softcap: float | None) -> Tensor:
    return x if softcap is None else torch.tanh(x / softcap) * softcap


def activated(x: Tensor, activation: Activation) -> Tensor:
    """Each number by itself, in x's dtype."""
    if activation == "relu2":
        return F.relu(x).square()
    return F.silu(x) if activation == "silu" else F.gelu(x, approximate="tanh")


def gated_mlp(x: Tensor, gate: Linear, up: Linear | None, down: Linear, activation: Activation = "silu") -> Tensor:
    """x: T [N, d] -> T [N, d]: down(act(gate x) * (up x))."""
    opened = activated(linear(x, *gate), activation)
    return linear(opened if up is None else opened * linear(x, *up), *down)


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
    """ids: int64 [N] -> T [N, d]."""
    if isinstance(table, Int8):
        rows = (table.values[ids].float() * table.scale[ids, None]).to(dtype)
    else:
        rows = table[ids]
    return rows if scale == 1.0 else rows * scale


def head(x: Tensor, norm: Norm, weight: Weight, softcap: float | None = None, scale: float = 1.0) -> Tensor:
    """x: T [N, d] -> logits, fp32 [N, V], not rounded to T."""
    normed = rms_norm(x, *norm)
    logits = linear(normed.float(), weight if isinstance(weight, Int8) else weight.float())
    return capped(logits * scale, softcap)
