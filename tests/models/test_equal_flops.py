"""Equal cost: counted once more from the weights of models that are really made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from depthdial.core.method import Method
from depthdial.methods import Dense, FlexiDepth, Highway, MixtureOfDepths, Random, SkipLayer
from depthdial.models.equal_flops import attended, equal, macs, shallow, wide
from depthdial.models.scratch import Spec, fresh

SPEC = Spec.parse("12x4@256")
BARE = Random(first=0, rate=0.5, adapter_ratio=0)


def counted(spec: Spec, method: Method) -> float:
    """Multiply-accumulates per token at target density, from the shapes of a real model's weights."""
    with torch.device("meta"):
        model: Any = fresh(spec, method)
    total, density, program = spec.vocabulary * spec.width, method.target, method.program(spec.layers)
    steps = {program.steps[s].block: program.steps[s] for s in program.routed if program.skips}
    assert density is not None
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear) or path == "lm_head":
            continue
        size = module.in_features * module.out_features
        if ".parts." not in path:
            step = steps.get(int(path.split(".")[2]))
            written = path.endswith(("k_proj", "v_proj")) and step is not None and step.absent == "project"
            total += size * (1 if step is None or written else density)
        elif ".router." in path:
            total += module.in_features
        elif path.endswith("predictor.enc"):
            total += size + module.out_features  # dec and head are one vector
    return total


@pytest.mark.parametrize(
    "method", [SkipLayer(), SkipLayer(density=0.25), MixtureOfDepths(), Highway(), BARE, Dense()], ids=repr
)
def test_baselines_cost_what_the_routed_model_costs(method: Method):
    cost = counted(SPEC, method)
    assert macs(SPEC, method) == pytest.approx(cost, rel=1e-9)
    for baseline in (shallow(SPEC, method), wide(SPEC, method)):
        assert counted(baseline, Dense()) == pytest.approx(cost, rel=5e-3)
        assert (baseline.heads, baseline.width, baseline.vocabulary) == (4, 256, 4096)
    other = equal(macs(SPEC, SkipLayer()), SPEC, method)
    assert counted(other, method) == pytest.approx(counted(SPEC, SkipLayer()), rel=5e-3)


def test_shapes_by_hand():
    """12 layers of 4 d^2 + 3 d f with f = 680; half of the tokens skip all but K and V's 2 d^2."""
    layer, kv = 4 * 256**2 + 3 * 256 * 680, 2 * 256**2
    assert macs(SPEC, SkipLayer()) == 4096 * 256 + 12 * (kv + 256 + (layer - kv) / 2)
    assert (wide(SPEC, SkipLayer()).layers, shallow(SPEC, SkipLayer()).layers) == (6, 7)
    assert wide(SPEC, SkipLayer(density=0.25)).layers == 3
    assert equal(macs(SPEC, Dense()), SPEC, Dense()) == Spec.parse("12x4@256,ffn=680")
    assert attended(SPEC, Dense(), 511) == 12 * 256 * 2 * 256
    assert attended(SPEC, SkipLayer(density=0.25), 511) == 12 * 256 * 2 * 256 / 4


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 10), st.sampled_from([1, 2, 4]), st.sampled_from([32, 64, 160]), st.floats(0.3, 0.9))
def test_any_size_meets_its_cost(layers: int, kv: int, width: int, density: float):
    spec, method = Spec(layers, 4, width, kv_heads=kv, vocabulary=500), SkipLayer(density=density)
    cost, dense = macs(spec, method), shallow(spec, method)
    step = dense.layers * 3 * width * 8
    assert abs(macs(dense, Dense()) - cost) <= step / 2
    assert dense.layers <= layers


def test_what_has_no_equal_is_refused():
    with pytest.raises(ValueError, match="FlexiDepth has no target density"):
        shallow(SPEC, FlexiDepth())
    with pytest.raises(ValueError, match=r"40 layers of width 256 cost .* more than"):
        equal(macs(SPEC, Dense()), SPEC, Dense(), layers=40)
