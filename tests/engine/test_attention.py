"""Attention in torch: what a token does not see never counts, whatever it holds."""

from __future__ import annotations

import pytest
import torch

from depthdial.engine.attention import _weighed
from depthdial.kernels.tensors import PAGE, LayerTensors
from depthdial.models.block import spine_of


@pytest.fixture
def block(tiny_model) -> LayerTensors:
    return spine_of(tiny_model("llama")).layers[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 40])
def test_masked_places_may_hold_anything(block: LayerTensors, dtype: torch.dtype, queries: int):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, count, 8, generator=generator).to(dtype) for count in (queries, 2 * PAGE, 2 * PAGE))
    positions = torch.arange(60, 60 + queries)[:, None]
    seen = (torch.arange(2 * PAGE) <= positions) & (torch.arange(2 * PAGE) > positions - 50)
    for t in (k, v):
        t[:, :, ~seen.any(0)] = 0
    expected = _weighed(q, k, v, seen, block)
    for value in (float("nan"), float("inf"), -float("inf")):
        for spoilt in ((k,), (v,), (k, v)):
            foul_k, foul_v = (t.clone() for t in (k, v))
            for t in (foul_k, foul_v):
                if any(t.equal(s) for s in spoilt):
                    t[:, :, ~seen.any(0)] = value
            assert torch.equal(_weighed(q, foul_k, foul_v, seen, block), expected)
    # a place that some see and others do not: its own number is nobody else's
    foul = v.clone()
    foul[:, :, 70] = float("nan")
    found, sees = _weighed(q, k, foul, seen, block), seen[:, 70]
    assert torch.isnan(found[:, :, sees]).all()
    torch.testing.assert_close(found[:, :, ~sees], expected[:, :, ~sees])
    assert queries == 1 or 0 < sees.sum() < queries
