"""Blocks of GGUF in the kernels' order hold the numbers that the package gguf reads from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from depthdial.kernels.blocks import FORMS, lay_out, parts_of, take, unpack
from depthdial.models.gguf_blocks import blocks_of
from depthdial.models.gguf_file import Stored

ROWS, COLS = 37, 512


def stored(kind: str, path: Path) -> tuple[Stored, torch.Tensor]:
    """A tensor of random bytes, whose fp16 scales are finite; and what it holds."""
    draw, form, its = np.random.default_rng(0), FORMS[kind], GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[its]
    raw = draw.integers(0, 256, (ROWS, COLS // block, size), dtype=np.uint8)
    for begin in (208,) if kind == "Q6_K" else (0,) if form.least else (0, 2):
        scales = draw.normal(0, 0.05, raw.shape[:2]).astype(np.float16)
        raw[..., begin : begin + 2] = scales[..., None].view(np.uint8)
    path.write_bytes(b"before" + raw.tobytes())
    return Stored(path, (ROWS, COLS), its, 6, raw.size), torch.from_numpy(dequantize(raw.reshape(ROWS, -1), its))


@pytest.mark.parametrize("kind", FORMS)
def test_blocks_hold_what_the_file_holds(kind: str, tmp_path: Path):
    tensor, meant = stored(kind, tmp_path / "tensor")
    weight = blocks_of(tensor)
    assert torch.equal(unpack(weight), meant)
    rows = torch.tensor([36, 0, 15, 16, 36])
    assert torch.equal(take(weight, rows), meant[rows]), "rows that are looked up"
    assert torch.equal(unpack(blocks_of(tensor, torch.arange(ROWS).flip(0))), meant.flip(0))
    whole = -(-ROWS // 16) * 16 / ROWS  # panels of 16 rows are filled up
    assert weight.codes.numel() + weight.scales.numel() <= 1.03 * whole * tensor.size, "not widened"


@pytest.mark.parametrize("kind", FORMS)
def test_laying_out_can_be_undone(kind: str, tmp_path: Path):
    weight = blocks_of(stored(kind, tmp_path / "tensor")[0])
    again = lay_out(kind, parts_of(weight))
    assert torch.equal(again.codes, weight.codes) and torch.equal(again.scales, weight.scales)
