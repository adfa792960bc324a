"""Weights in the blocks of GGUF, laid out for kernels: panels of 16 rows, whose codes of four columns lie side by side.

A weight is scale * code + least, codes being unsigned. What a file's block holds is put into another order and never
widened, but for the 6-bit scales of Q4_K and Q5_K, which become bytes (2 to 3 percent). `unpack` is the definition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, COLS, SUPER = 16, 32, 8
"""Rows of a panel, columns of a block, blocks that share the halves of a K kind."""


class Form(NamedTuple):
    """How a kind of block stores 32 weights of a row."""

    bits: int
    """Of a code."""
    least: int = 0
    """The code that stands for 0, of kinds that store no minimum."""
    grouped: bool = False
    """Do eight blocks share fp16 scales of their own small ones?"""

    @property
    def unit(self) -> int:
        """Columns that must divide a row."""
        return COLS * SUPER if self.grouped else COLS


FORMS: dict[str, Form] = {
    "Q4_0": Form(4, 8), "Q4_1": Form(4), "Q5_0": Form(5, 16), "Q5_1": Form(5), "Q8_0": Form(8, 128),
    "Q4_K": Form(4, grouped=True), "Q5_K": Form(5, grouped=True), "Q6_K": Form(6, 32, grouped=True),
}  # fmt: skip
"""By the name that GGUF gives them, in the order of csrc/abi.h."""


class Blocks(NamedTuple):
    """A weight [rows, cols] in blocks."""

    kind: str
    rows: int
    cols: int
    codes: Tensor
    """uint8 [panels, blocks, bytes]: low nibbles of columns 4 i..4 i + 3 beside those of 16 columns on, then higher
    bits."""
    scales: Tensor
    """uint8 [panels, bytes]: fp16 scales and minima, block by block, or of a group, with the small ones behind."""

    def to(self, dtype: torch.dtype) -> Tensor:
        """As a matrix, T [rows, cols]."""
        return unpack(self).to(dtype)


class Parts(NamedTuple):
    """What a weight consists of, row by row."""

    codes: Tensor
    """uint8 [rows, cols]."""
    wide: Tensor
    """float16 [rows, n, 1 or 2]: scales and minima of each block, or of each group of eight."""
    small: Tensor | None = None
    """uint8 [rows, blocks, 2], of grouped kinds: multiples of the wide ones; of Q6_K signed, one for each half."""


def lay_out(kind: str, parts: Parts) -> Blocks:
    """Rows are filled up to whole panels by zeros."""
    rows, cols = parts.codes.shape
    missing = -rows % ROWS
    codes, wide = (F.pad(part, (0, 0) * (part.ndim - 1) + (0, missing)) for part in (parts.codes, parts.wide))
    panels, blocks = (rows + missing) // ROWS, cols // COLS
    lanes = codes.view(panels, ROWS, blocks, 8, 4).permute(0, 2, 3, 1, 4).reshape(panels, blocks, 8, 64)
    bits = FORMS[kind].bits
    if bits < 8:
        planes = [(lanes[:, :, :4] & 15) | (lanes[:, :, 4:] << 4)]
        if bits > 4:
            each = 8 // (bits - 4)  # columns whose high bits share a byte
            high = (lanes >> 4).view(panels, blocks, -1, each, 64)
            planes.append(sum(high[:, :, :, i] << (i * (bits - 4)) for i in range(each)))  # pyright: ignore
        lanes = torch.cat(planes, 2)
    scales = wide.view(panels, ROWS, wide.shape[1], -1).permute(0, 2, 3, 1).flatten(2).contiguous().view(torch.uint8)
    if parts.small is not None:
        small = F.pad(parts.small, (0, 0, 0, 0, 0, missing)).view(panels, ROWS, -1, SUPER * 2)
        scales = torch.cat((scales, small.permute(0, 2, 3, 1).reshape(panels, small.shape[2], -1)), 2)
    return Blocks(kind, rows, cols, lanes.reshape(panels, blocks, -1).contiguous(), scales.flatten(1).contiguous())


def parts_of(weight: Blocks) -> Parts:
    """The inverse of `lay_out`."""
    form, (panels, blocks, _) = FORMS[weight.kind], weight.codes.shape
    lanes = weight.codes.view(panels, blocks, -1, 64)
    if form.bits < 8:
        low, high, bits = lanes[:, :, :4], lanes[:, :, 4:], form.bits - 4
        lanes = torch.cat((low & 15, low >> 4), 2)
        if bits:
            spread = torch.stack([(high >> (i * bits)) & ((1 << bits) - 1) for i in range(8 // bits)], 3)
            lanes = lanes | (spread.flatten(2, 3) << 4)
    codes = lanes.view(panels, blocks, 8, ROWS, 4).permute(0, 3, 1, 2, 4).reshape(panels * ROWS, -1)
    groups = blocks // SUPER if form.grouped else blocks
    scales, small = weight.scales.view(panels, groups, -1), None
    if form.grouped:
        small = (
            scales[:, :, 4 * ROWS :].reshape(panels, blocks, 2, ROWS).permute(0, 3, 1, 2).flatten(0, 1)[: weight.rows]
        )
        scales = scales[:, :, : 4 * ROWS]
    wide = scales.contiguous().view(torch.float16).view(panels, groups, -1, ROWS).permute(0, 3, 1, 2).flatten(0, 1)
    return Parts(codes[: weight.rows], wide[: weight.rows], small)


def unpack(weight: Blocks) -> Tensor:
    """float32 [rows, cols]: the definition of what a kernel multiplies by."""
    form, (codes, wide, small) = FORMS[weight.kind], parts_of(weight)
    values, wide = codes.view(weight.rows, -1, COLS).float(), wide.float()
    if small is not None:
        wide = wide.repeat_interleave(SUPER, 1)
        if form.least:  # Q6_K: a scale for each half
            scale = wide[..., :1] * small.view(torch.int8).float()
            halves = values.unflatten(-1, (2, COLS // 2)) - form.least
            return (halves * scale[..., None]).reshape(weight.rows, weight.cols)
        wide = wide * small.float() * torch.tensor([1.0, -1.0])
    if form.least:
        return ((values - form.least) * wide[..., :1]).view(weight.rows, weight.cols)
    return (values * wide[..., :1] + wide[..., 1:]).view(weight.rows, weight.cols)


def take(weight: Blocks, rows: Tensor) -> Tensor:
    """float32 [N, cols], of rows int64 [N]."""
    panels = rows // ROWS
    part = Blocks(weight.kind, len(rows) * ROWS, weight.cols, weight.codes[panels], weight.scales[panels])
    return unpack(part).view(len(rows), ROWS, -1)[torch.arange(len(rows)), rows % ROWS]


def quantise(weight: Tensor, kind: str) -> Blocks:
    """[rows, cols] -> Q4_1, whose least and largest weight of a block are exact but for fp16, or Q8_0.

    Raises ValueError for columns that do not divide by 32."""
    rows, cols = weight.shape
    if cols % COLS:
        raise ValueError(f"a matrix has {cols} columns, which do not divide by {COLS}")
    values = weight.detach().float().view(rows, -1, COLS)
    if kind == "Q8_0":
        wide = (values.abs().amax(-1, keepdim=True) / 127).half()
        least = torch.zeros_like(wide)
    else:
        least = values.amin(-1, keepdim=True).half()
        wide = ((values.amax(-1, keepdim=True) - least.float()) / 15).half()
        wide = torch.where(wide > 0, wide, 0)
    inverse = torch.where(wide > 0, 1 / wide.float(), 0)
    most = (1 << FORMS[kind].bits) - 1
    codes = ((values - least.float()) * inverse + FORMS[kind].least).round().clamp(0, most).to(torch.uint8)
    wide = wide if FORMS[kind].least else torch.cat((wide, least), -1)
    return lay_out(kind, Parts(codes.view(rows, cols), wide))
