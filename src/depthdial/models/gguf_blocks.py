"""The blocks of a GGUF tensor as the kernels take them: codes and scales as the file has them, in another order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from gguf import quant_shape_to_byte_shape
from torch import Tensor
from transformers import PreTrainedModel

from depthdial.kernels.blocks import FORMS, Blocks, Parts, lay_out
from depthdial.models.convert import base_weights
from depthdial.models.gguf_file import Stored, Unsupported, parts_of_gguf, read_gguf
from depthdial.models.gguf_keys import Keys
from depthdial.models.gguf_model import architecture_of, name_of, row_order
from depthdial.models.short_names import gguf_of

UNQUANTISED = ("F32", "F16", "BF16")


def blocks_of(stored: Stored, order: Tensor | None = None) -> Blocks:
    """A tensor [rows, cols]. order: int64 [rows], the file's rows in the order that the model has them; None: as they
    are."""
    kind = stored.kind.name
    mapped = np.memmap(stored.file, np.uint8, "r", stored.offset, stored.size)
    raw = torch.from_numpy(np.array(mapped.reshape(quant_shape_to_byte_shape(stored.shape, stored.kind))))
    rows, cols = stored.shape
    raw = (raw if order is None else raw[order]).view(rows, cols // FORMS[kind].unit, -1)
    codes, wide, small = (_grouped if FORMS[kind].grouped else _plain)(kind, raw)
    return lay_out(kind, Parts(codes.reshape(rows, cols), wide, small))


def _fp16(raw: Tensor) -> Tensor:
    return raw.contiguous().view(torch.float16)


def _plain(kind: str, raw: Tensor) -> tuple[Tensor, Tensor, None]:
    """raw: uint8 [rows, blocks, bytes]."""
    begin, bits = (2 if FORMS[kind].least else 4), FORMS[kind].bits
    wide, rest = _fp16(raw[..., :begin]), raw[..., begin:]
    if bits == 8:
        return rest ^ 0x80, wide, None
    codes = _nibbles(rest[..., 4 * (bits - 4) :])
    if bits == 5:
        each = torch.arange(8, dtype=torch.uint8)
        codes = codes | (((rest[..., :4, None] >> each) & 1).flatten(-2) << 4)
    return codes, wide, None


def _nibbles(raw: Tensor) -> Tensor:
    """[..., n] -> [..., 2 n]: the lower ones, then the higher."""
    return torch.cat((raw & 15, raw >> 4), -1)


def _grouped(kind: str, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """raw: uint8 [rows, groups, bytes]."""
    rows, groups, _ = raw.shape
    if kind == "Q6_K":
        low, high, small, wide = raw.split((128, 64, 16, 2), -1)
        low = low.view(rows, groups, 2, 64)
        high = high.view(rows, groups, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
        codes = _nibbles(low) | ((high & 3).flatten(-2) << 4)
        # the minimum's place stays empty
        wide = torch.cat((_fp16(wide), torch.zeros(rows, groups, 1, dtype=torch.float16)), -1)
        return codes, wide, small.reshape(rows, -1, 2)
    wide, packed, rest = _fp16(raw[..., :4]), raw[..., 4:16].view(rows, groups, 3, 4), raw[..., 16:]
    first, second, third = packed.unbind(2)
    scale = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), -1)
    least = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), -1)
    codes = _nibbles(rest[..., -128:].reshape(rows, groups, 4, 32)).view(rows, groups, 8, 32)
    if kind == "Q5_K":
        each = torch.arange(8, dtype=torch.uint8)[:, None]
        codes = codes | (((rest[..., None, :32] >> each) & 1) << 4)
    return codes, wide, torch.stack((scale, least), -1).view(rows, -1, 2)


def stored_blocks(name: str, model: PreTrainedModel) -> dict[int, Callable[[], Blocks]]:
    """Of a model that was opened by `name`, converted or not: what reads the blocks of a matrix, by the id of its
    parameter. Matrices that the file holds unquantised are left out.

    Raises ValueError for a name that is no GGUF file's, and for blocks that do not run."""
    path, weights = gguf_of(name), base_weights(model)
    contents = read_gguf(parts_of_gguf(path))
    architecture, config = architecture_of(Keys(contents.metadata)), model.config
    found: dict[int, Callable[[], Blocks]] = {}
    for called, stored in contents.tensors.items():
        ours = name_of(called, architecture)
        if ours is None or ours not in weights or len(stored.shape) != 2 or stored.kind.name in UNQUANTISED:
            continue
        if stored.kind.name not in FORMS:
            raise Unsupported(
                f"tensor {called} of {path.name} has blocks of type {stored.kind.name}, which do not run; "
                f"{', '.join(FORMS)} do"
            )
        order = row_order(called, stored.shape[0], config, architecture)
        found[id(weights[ours])] = partial(blocks_of, stored, order)
    return found
