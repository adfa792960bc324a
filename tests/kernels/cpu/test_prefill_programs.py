"""The same programs in tiles. Without AMX they are emulated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.kernels import definition
from tests.kernels.cpu.programs import PROGRAMS, count, opened, tokens_of, wide_model
from torch import Tensor

from depthdial.kernels.cpu.build import EMULATED, all_isas
from depthdial.kernels.cpu.native import NativeModel
from depthdial.kernels.passing import Decided, Waiting
from depthdial.kernels.tensors import Branch, ModelTensors


def told(model: ModelTensors, keep: Tensor, score: Tensor, dtype: torch.dtype) -> tuple[ModelTensors, Callable]:
    """The model in a dtype, every decision what a pass made of it: `keep`, and weights from its scores."""
    wide = wide_model(model, dtype)
    soft = [step.branch.router is not None and step.branch.router.soft for step in model.steps]

    def decide(waiting: Waiting) -> Decided:
        s = waiting.step
        weights = (score[s], 1 - score[s]) if soft[s] else (None, None)
        return Decided(keep[s].bool(), *weights)

    def wait(branch: Branch) -> Branch:
        return branch if branch.by == "no" else branch._replace(by="open", router=None)

    layers = [
        layer._replace(branch=wait(layer.branch), mlp_branch=layer.mlp_branch and wait(layer.mlp_branch))
        for layer in wide.layers
    ]
    return wide._replace(layers=tuple(layers)), decide


SPANS = ((0, 100), (5, 6), (40, 41), (70, 130))


@pytest.mark.skipif(EMULATED not in all_isas(), reason="no AVX-512 to emulate tiles with")
@pytest.mark.parametrize("name", PROGRAMS)
@torch.no_grad()
def test_programs_in_tiles(name, base, batch_for):
    model = wide_model(PROGRAMS[name](base), torch.bfloat16)
    batch, native = batch_for(model), NativeModel(model, isa=EMULATED)
    inputs = tokens_of(batch, model, [(i, place) for i, span in enumerate(SPANS) for place in range(*span)])
    asked, ours, out = torch.arange(len(inputs.ids), dtype=torch.int32), batch.cache(), batch.output(len(inputs.ids))
    counters = native.prefill(inputs, ours, out, asked)
    keep = out.keep.bool()
    assert 0 < keep.float().mean() < 1 and (keep.any(0) & ~keep.all(0)).any()
    count(model, inputs, keep, counters)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        meant, decide = told(model, out.keep, out.score, dtype)
        cache = batch.cache()
        cache = cache._replace(k=cache.k.to(dtype), v=cache.v.to(dtype))
        passed = definition.forward_pass(meant, inputs, cache, decide)
        assert torch.equal(passed.keep, out.keep)
        found[dtype] = [part.float() for part in (cache.k, cache.v, passed.logits)]
    for mine, theirs, exact in zip((ours.k, ours.v, out.logits), *found.values(), strict=True):
        error, unit = (mine - exact).norm(), exact.norm()
        assert error < 1.3 * (theirs - exact).norm() + 1e-3 * unit and error < 0.1 * unit
    expected = definition.forward_pass(model, inputs, batch.cache())
    same = (expected.keep == out.keep).all(0)
    assert same.float().mean() > 0.8 and (expected.score - out.score)[:, same].abs().mean() < 0.02
    cut, decide, seen = opened(model, inputs.given)
    if name in ("halves", "exits"):
        again, apart = batch.output(len(inputs.ids)), batch.cache()
        summed = NativeModel(cut, isa=EMULATED).prefill(inputs, apart, again, asked, decide)
        assert torch.equal(again.logits, out.logits) and torch.equal(again.keep, out.keep) and seen
        assert torch.equal(ours.k, apart.k) and torch.equal(ours.v, apart.v)
        assert summed == counters
