"""Rotary positions, head norms and the writing of K and V into their pages, for use inside other kernels.

A head is held as its two halves, which the rotation pairs. cos and sin come from torch, once a pass.
"""

# pyright reads a kernel as a plain function: it knows neither launch options nor what compiling makes of arguments
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from depthdial.kernels.tensors import Rope
from depthdial.kernels.triton.norm import normed


class Angles:
    """cos and sin of a pass's positions for each kind of rope, T [N, head_dim / 2], in buffers that stay in place."""

    def __init__(self, ropes: dict[str, Rope], rows: int, dtype: torch.dtype, device: torch.device):
        self.ropes = ropes
        halves = {name: rope.inv_freq.numel() for name, rope in ropes.items()}
        self.cos = {name: torch.zeros(rows, half, dtype=dtype, device=device) for name, half in halves.items()}
        self.sin = {name: torch.zeros_like(cos) for name, cos in self.cos.items()}

    def turn(self, positions: Tensor) -> None:
        """Fills the buffers. positions: int [N]."""
        for name, rope in self.ropes.items():
            angle = positions.float()[:, None] * rope.inv_freq
            self.cos[name].copy_(angle.cos() * rope.scaling)
            self.sin[name].copy_(angle.sin() * rope.scaling)


@triton.jit
def turned(x, norm, eps, cos, sin, HALF: tl.constexpr, BLOCK: tl.constexpr, PLUS_ONE: tl.constexpr):
    """Heads at the pointers x [H] -> (first, second), [H, BLOCK] each: loaded, normed if asked, and rotated.

    cos, sin: [H, BLOCK] or [1, BLOCK] of the model's dtype. Columns beyond HALF are 0.
    """
    column = tl.arange(0, BLOCK)
    inside = (column < HALF)[None, :]
    first = tl.load(x[:, None] + column[None, :], mask=inside, other=0.0)
    second = tl.load(x[:, None] + HALF + column[None, :], mask=inside, other=0.0)
    if norm is not None:
        one, two = first.to(tl.float32), second.to(tl.float32)
        inverse = tl.rsqrt((tl.sum(one * one, 1) + tl.sum(two * two, 1)) / (2 * HALF) + eps)[:, None]
        low = tl.load(norm + column, mask=column < HALF, other=0.0)[None, :]
        high = tl.load(norm + HALF + column, mask=column < HALF, other=0.0)[None, :]
        first = normed(first, inverse, low, PLUS_ONE)
        second = normed(second, inverse, high, PLUS_ONE)
    # each product and the sum are rounded to the model's dtype, as Hugging Face does
    kind = first.dtype
    one, two, c, s = first.to(tl.float32), second.to(tl.float32), cos.to(tl.float32), sin.to(tl.float32)
    turned_first = (one * c).to(kind).to(tl.float32) - (two * s).to(kind).to(tl.float32)
    turned_second = (two * c).to(kind).to(tl.float32) + (one * s).to(kind).to(tl.float32)
    return turned_first.to(kind), turned_second.to(kind)


@triton.jit
def write_row(
    row, k, v, norm, eps, cos, sin, k_cache, v_cache, page_table, sequences, positions, pages_per_sequence,
    KV_HEADS: tl.constexpr, HALF: tl.constexpr, PLUS_ONE: tl.constexpr, PAGE: tl.constexpr,
    HEADS_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """K (normed, rotated) and V of one row into their page. k, v: T [N, KV_HEADS * 2 * HALF]; caches of one layer."""
    column = tl.arange(0, BLOCK)
    head = tl.arange(0, HEADS_BLOCK)
    present = (head < KV_HEADS)[:, None] & (column < HALF)[None, :]
    safe = tl.where(head < KV_HEADS, head, 0)
    source = row.to(tl.int64) * KV_HEADS * 2 * HALF + safe * 2 * HALF
    c = tl.load(cos + row * HALF + column, mask=column < HALF, other=0.0)[None, :]
    s = tl.load(sin + row * HALF + column, mask=column < HALF, other=0.0)[None, :]
    first, second = turned(k + source, norm, eps, c, s, HALF, BLOCK, PLUS_ONE)
    position = tl.load(positions + row)
    page = tl.load(page_table + tl.load(sequences + row) * pages_per_sequence + position // PAGE).to(tl.int64)
    target = ((page * KV_HEADS + safe) * PAGE + position % PAGE) * 2 * HALF
    tl.store(k_cache + target[:, None] + column[None, :], first, mask=present)
    tl.store(k_cache + target[:, None] + HALF + column[None, :], second, mask=present)
    for part in range(2):
        at = part * HALF + column[None, :]
        values = tl.load(v + source[:, None] + at, mask=present, other=0.0)
        tl.store(v_cache + target[:, None] + at, values, mask=present)
