"""RMSNorm of listed rows."""

from __future__ import annotations

import pytest
import torch
from tests.kernels import definition

from depthdial.kernels.tensors import Norm
from depthdial.kernels.triton.norm import add_normed, rms_norm


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_listed_rows_equal_the_reference_and_others_stay(dtype, plus_one, some_rows, close, device):
    x = torch.randn(7, 48, device=device).to(dtype)
    norm = Norm(torch.randn(48, device=device).to(dtype), 1e-5, plus_one)
    out = torch.full_like(x, 7.0)
    rms_norm(x, norm, out, some_rows([0, 3, 6]))
    wanted = torch.full_like(x, 7.0)
    wanted[[0, 3, 6]] = definition.rms_norm(x, *norm)[[0, 3, 6]]
    close(out, wanted)


@pytest.mark.parametrize("weighed", [False, True])
def test_norm_is_weighed_and_added_to_the_stream(weighed, some_rows, close, device):
    x, stream = torch.randn(2, 5, 32, device=device)
    scale = torch.rand(5, device=device) if weighed else None
    norm = Norm(torch.randn(32, device=device), 1e-6)
    wanted = stream.clone()
    update = definition.rms_norm(x, *norm) * (1 if scale is None else scale[:, None])
    wanted[[1, 2]] += update[[1, 2]]
    add_normed(x, norm, stream, some_rows([1, 2]), scale)
    close(stream, wanted)
