"""A training that starts from a plug-in: wider adapters do what the narrower ones did; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from depthdial.core.layers import Adapter
from depthdial.methods import method_named
from depthdial.models.checkpoint import save
from depthdial.train.start import take_over

FIELDS = {"first": 2, "adapter_ratio": 8, "router_ratio": 4, "weights": "hard", "start": 0.0}
TOKENS = torch.arange(3, 60)[None]


def test_wider_adapters_begin_as_the_narrower_ones(tiny_model: Callable, adapted: Callable, tmp_path: Path):
    before = adapted(tiny_model("llama"), method_named("flexidepth", FIELDS))
    save(before, tmp_path / "narrow")
    wide = adapted(tiny_model("llama"), method_named("flexidepth", {**FIELDS, "adapter_ratio": 2}))
    take_over(wide, str(tmp_path / "narrow"))
    for model in (before, wide):
        model.converted.set(offset=0.0)
    with torch.no_grad():
        expected = before(TOKENS).logits
        torch.testing.assert_close(wide(TOKENS).logits, expected)
    assert 0.1 < wide.route.keep()[2:].float().mean() < 0.9
    widths = {module.up.out_features for module in wide.modules() if isinstance(module, Adapter)}
    assert widths == {32}
    assert any(bool(module.down.weight.any()) for module in wide.modules() if isinstance(module, Adapter))


@pytest.mark.parametrize("change", [{"adapter_ratio": 16}, {"router_ratio": 2}, {"first": 1}])
def test_what_does_not_fit_is_refused(tiny_model: Callable, adapted: Callable, tmp_path: Path, change: dict[str, int]):
    save(adapted(tiny_model("llama"), method_named("flexidepth", FIELDS)), tmp_path / "start")
    other = adapted(tiny_model("llama"), method_named("flexidepth", {**FIELDS, **change}))
    with pytest.raises(ValueError, match="cannot be the starting point of this method"):
        take_over(other, str(tmp_path / "start"))
