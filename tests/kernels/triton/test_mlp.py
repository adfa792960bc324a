"""The MLP of kept rows beside the adapter of skipped ones."""

from __future__ import annotations

import pytest
import torch
from tests.kernels import definition

from depthdial.kernels.tensors import AdapterTensors, Linear, Norm
from depthdial.kernels.triton.mlp import Gated, down, gate_up, multiply_activated
from depthdial.kernels.triton.tiles import Tile

SMALL = Tile(16, 32, 32, 4, 2)
D, F, A = 40, 72, 12


def _gated(rows, width, device, dtype, scale=None):
    shapes = ((width, D), (width, D), (D, width))
    gate, up, down_ = (torch.randn(*shape, device=device).to(dtype) * 0.2 for shape in shapes)
    return Gated(rows, gate, up, down_, torch.zeros(20, width, device=device, dtype=dtype), scale)


@pytest.mark.parametrize(
    ("dtype", "activation", "fold"),
    [
        (torch.float32, "silu", False),
        (torch.float32, "gelu_tanh", True),
        (torch.bfloat16, "silu", True),
        (torch.bfloat16, "gelu_tanh", False),
    ],
)
def test_each_row_gets_its_own_network(dtype, activation, fold, some_rows, close, device):
    x = torch.randn(20, D, device=device).to(dtype)
    kept, skipped = [0, 3, 4, *range(6, 20)], [1, 5]  # row 2 is in neither: padding
    scale = torch.rand(20, device=device)
    mlp, adapter = _gated(some_rows(kept), F, device, dtype, scale), _gated(some_rows(skipped), A, device, dtype)
    norm = Norm(torch.randn(D, device=device).to(dtype), 1e-5, plus_one=fold)
    u = definition.rms_norm(x, *norm)
    wanted = x.clone()
    full = definition.gated_mlp(u, Linear(mlp.gate), Linear(mlp.up), Linear(mlp.down), activation)
    wanted[kept] += (scale[:, None].to(dtype) * full)[kept]
    wanted[skipped] += definition.adapter(u, AdapterTensors(adapter.gate, adapter.up, adapter.down))[skipped]
    gate_up(x if fold else u, mlp, adapter, SMALL, activation, norm if fold else None)
    down(x, mlp, adapter, SMALL)
    close(x, wanted)


def test_biases_and_an_output_of_its_own(some_rows, close, device):
    u = torch.randn(4, D, device=device)
    biases = [torch.randn(n, device=device) for n in (F, F, D)]
    mlp = _gated(some_rows([1, 2]), F, device, torch.float32)._replace(
        gate_bias=biases[0], up_bias=biases[1], down_bias=biases[2], inner=torch.zeros(4, F, device=device)
    )
    out, stream = torch.zeros(4, D, device=device), torch.randn(4, D, device=device)
    before = stream.clone()
    gate_up(u, mlp, None, SMALL)
    down(stream, mlp, None, SMALL, out=out)
    gate, up, last = (Linear(w, b) for w, b in zip((mlp.gate, mlp.up, mlp.down), biases, strict=True))
    wanted = definition.gated_mlp(u, gate, up, last)
    close(out[[1, 2]], wanted[[1, 2]])
    assert not out[[0, 3]].any() and torch.equal(stream, before)


@pytest.mark.parametrize(("kept", "skipped"), [([], [0, 1]), ([0, 1], [])])
def test_the_other_network_is_not_read(kept, skipped, some_rows, device):
    x = torch.randn(2, D, device=device)
    mlp, adapter = (_gated(some_rows(rows), n, device, torch.float32) for rows, n in ((kept, F), (skipped, A)))
    for weight in (mlp if skipped else adapter)[1:4]:
        weight.fill_(float("nan"))
    work = torch.zeros(2, 2, dtype=torch.int32, device=device)
    gate_up(x, mlp, adapter, SMALL, work=(work[0, :1], work[1, :1]))
    down(x, mlp, adapter, SMALL, work=(work[0, 1:], work[1, 1:]))
    assert x.isfinite().all()
    # 72, 12 and 40 columns in tiles of 32
    assert work.tolist() == ([[3, 2], [0, 0]] if kept else [[0, 0], [1, 2]])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_are_multiplied_in_place(activation, close, device):
    gates, ups = torch.randn(2, 7, 33, device=device)
    one = Linear(torch.eye(33, device=device))
    ones = Linear(torch.zeros(33, 33, device=device), ups.new_ones(33))
    opened = definition.gated_mlp(gates, one, ones, one, activation)
    multiply_activated(gates, ups, activation)
    close(gates, opened * ups)
