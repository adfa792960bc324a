"""Linear maps of listed rows."""

from __future__ import annotations

import pytest
import torch
from tests.kernels import definition

from depthdial.kernels.tensors import Norm
from depthdial.kernels.triton.linear import Map, linear
from depthdial.kernels.triton.rows import Rows
from depthdial.kernels.triton.tiles import Tile, tiles_for

SMALL = Tile(16, 16, 32, 4, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [[], [4], [0, 5, 20], list(range(21))])
def test_three_maps_of_one_input(index, dtype, some_rows, close, device):
    x = torch.randn(21, 40, device=device).to(dtype)  # 40: no multiple of the tile's depth
    weights = [torch.randn(n, 40, device=device).to(dtype) for n in (16, 24, 5)]
    biases = [torch.randn(n, device=device).to(dtype) for n in (16, 24, 5)]
    outs = [torch.full((21, n), 7.0, device=device, dtype=dtype) for n in (16, 24, 5)]
    maps = tuple(Map(*parts) for parts in zip(weights, biases, outs, strict=True))
    linear(x, maps, some_rows(index), SMALL)
    for m in maps:
        wanted = torch.full_like(m.out, 7.0)
        wanted[index] = definition.linear(x, m.weight, m.bias)[index]
        close(m.out, wanted)


@pytest.mark.parametrize("plus_one", [False, True])
def test_folded_norm_and_residual(plus_one, some_rows, close, device):
    x, stream = torch.randn(3, 48, device=device), torch.randn(3, 20, device=device)
    weight, norm = torch.randn(20, 48, device=device), Norm(torch.randn(48, device=device), 1e-5, plus_one)
    wanted = stream.clone()
    wanted[[2]] += definition.linear(definition.rms_norm(x, *norm), weight)[[2]]
    linear(x, (Map(weight, None, stream),), some_rows([2]), SMALL, norm, residual=stream)
    close(stream, wanted)


def test_head_gives_capped_fp32_logits_of_a_bfloat16_model(device):
    x, weight = (torch.randn(n, 32, device=device).bfloat16() for n in (2, 50))
    norm = Norm(torch.randn(32, device=device).bfloat16(), 1e-5)
    logits = torch.zeros(2, 50, device=device)
    rows = Rows(torch.tensor([2], dtype=torch.int32, device=device))
    linear(x, (Map(weight, None, logits),), rows, tiles_for(2).head, norm, softcap=3.0)
    torch.testing.assert_close(logits, definition.head(x, norm, weight, 3.0), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize(("kept", "row_tiles"), [(0, 0), (1, 1), (16, 1), (17, 2), (40, 3)])
def test_tiles_run_are_those_of_the_list_and_no_others(kept, row_tiles, some_rows, device):
    x, weight = torch.randn(40, 32, device=device), torch.randn(50, 32, device=device)
    work = torch.zeros(1, dtype=torch.int32, device=device)
    linear(x, (Map(weight, None, torch.zeros(40, 50, device=device)),), some_rows(list(range(kept))), SMALL, work=work)
    assert work.item() == row_tiles * 4  # 50 columns are 4 tiles of 16


def test_an_empty_list_reads_no_weight(some_rows, device):
    x, poison = torch.randn(4, 32, device=device), torch.full((16, 32), float("nan"), device=device)
    out = torch.zeros(4, 16, device=device)
    linear(x, (Map(poison, None, out),), some_rows([]), SMALL, residual=out)
    assert not out.any()
