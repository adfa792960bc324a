"""Parts in numpy are their modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depthdial.core.layers import Adapter, LinearRouter, Router
from depthdial.engine.ready_parts import ACTS, ready

PARTS = {
    "norm_tanh": lambda: Router(48, 4, 1e-6, start=0.3),
    "tanh_norm": lambda: Router(48, 4, 1e-6, "tanh_norm"),
    "fixed": lambda: Router(48, 4, 1e-6, fixed=True),
    "linear": lambda: LinearRouter(48),
    "one class": lambda: LinearRouter(48, classes=1),
    "adapter": lambda: Adapter(48, 12),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PARTS)
@torch.no_grad()
def test_they_say_what_their_modules_say(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    part = PARTS[name]()
    if isinstance(part, Adapter):
        nn.init.normal_(part.down.weight)
    for count in (1, 9):
        x = torch.randn(count, 48).to(dtype)
        found, expected = ready({"part": part}, dtype)["part"](x), part(x)
        assert not isinstance(ready({"part": part}, dtype)["part"], nn.Module)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        bound = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


def test_what_cannot_be_read_stays_and_the_others_can_be_looked_into():
    router: Any = Router(48, 4, 1e-6)
    own = nn.Linear(48, 1)
    router.dec = nn.Sequential(router.dec)
    found = ready({"router": router, "own": own, "adapter": Adapter(48, 12)}, torch.float32)
    assert found["router"] is router and found["own"] is own
    assert found["adapter"].gate.out_features == 12


@pytest.mark.parametrize("name", ACTS)
def test_functions_of_a_code(name: str):
    code = torch.linspace(-5, 5, 41)[None]
    by_torch: Tensor = getattr(torch if name in ("tanh", "sigmoid") else nn.functional, name)(code)
    torch.testing.assert_close(torch.from_numpy(ACTS[name](code.numpy())), by_torch)
