"""RMSNorm of listed rows, and its form after a unit: norm, weigh, add to the residual stream (Gemma)."""

# pyright reads a kernel as a plain function: it knows neither launch options nor what compiling makes of arguments
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from depthdial.kernels.tensors import Norm
from depthdial.kernels.triton.rows import Rows, row_of


@triton.jit
def normed(x, inverse, weight, PLUS_ONE: tl.constexpr):
    """x of the model's dtype times `inverse` (fp32) and the norm's weight, rounded where Hugging Face rounds."""
    wide = x.to(tl.float32) * inverse
    if PLUS_ONE:
        wide = wide * (1.0 + weight.to(tl.float32))
    else:
        wide = weight.to(tl.float32) * wide.to(x.dtype).to(tl.float32)
    return wide.to(x.dtype)


@triton.jit
def _norm(
    x, weight, eps, index, count, out, residual, scale, D: tl.constexpr, PLUS_ONE: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0)
    length = tl.load(count)
    if place < length:
        row = row_of(index, place, length).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < D
        value = tl.load(x + row * D + column, mask=inside, other=0.0)
        wide = value.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(wide * wide, 0) / D + eps)
        value = normed(value, inverse, tl.load(weight + column, mask=inside, other=0.0), PLUS_ONE)
        if residual is not None:
            if scale is not None:
                by = tl.load(scale + row).to(value.dtype).to(tl.float32)
                value = (value.to(tl.float32) * by).to(value.dtype)
            base = tl.load(residual + row * D + column, mask=inside, other=0.0)
            value = (base.to(tl.float32) + value.to(tl.float32)).to(value.dtype)
        tl.store(out + row * D + column, value, mask=inside)


def parts_of(norm: Norm | None) -> tuple[Tensor | None, float]:
    """A kernel's arguments for a norm that may not be there."""
    return (None, 0.0) if norm is None else (norm.weight, norm.eps)


def rms_norm(x: Tensor, norm: Norm, out: Tensor, rows: Rows) -> None:
    """out[row] = norm(x[row]) for listed rows. x, out: T [N, d]."""
    _launch(x, norm, out, rows, None, None)


def add_normed(x: Tensor, norm: Norm, stream: Tensor, rows: Rows, scale: Tensor | None = None) -> None:
    """stream[row] += scale[row] * norm(x[row]) for listed rows. x, stream: T [N, d]; scale: fp32 [N]."""
    _launch(x, norm, stream, rows, stream, scale)


def _launch(x: Tensor, norm: Norm, out: Tensor, rows: Rows, residual: Tensor | None, scale: Tensor | None) -> None:
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    _norm[(x.shape[0],)](
        *(x, norm.weight, norm.eps, rows.index, rows.count, out, residual, scale),
        D=width,
        PLUS_ONE=norm.plus_one,
        BLOCK=block,
        num_warps=4 if block <= 4096 else 8,
    )
