"""Small passes that jump, loop, leave, part within a layer, look at the head or wait for Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels import definition
from tests.kernels.cpu.programs import PLACES, PROGRAMS, check, count, random, router, tokens_of, wide_model

from depthdial.engine.layer import rms_norm
from depthdial.kernels.cpu.abi import PassSpec
from depthdial.kernels.cpu.build import all_isas
from depthdial.kernels.cpu.native import NativeModel
from depthdial.kernels.passing import Decided, PassTokens, Waiting
from depthdial.kernels.tensors import (
    END,
    Act,
    AdapterTensors,
    Branch,
    Dense,
    Linear,
    Look,
    ModelTensors,
    RouterTensors,
)


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("name", PROGRAMS)
@torch.no_grad()
def test_programs_are_their_definition(name, isa, base, batch_for):
    model = PROGRAMS[name](base)
    batch = batch_for(model)
    out, _, seen = check(model, batch, tokens_of(batch, model, PLACES), isa)
    ran = out.keep.bool()
    assert 0 < ran.float().mean() < 1 and (ran.any(0) & ~ran.all(0)).any()
    assert name in ("readout", "loops") or seen


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@torch.no_grad()
def test_any_program(data, base, batch_for):
    """Visits in any order and with any jumps, decided by anyone; what is left nowhere may hold anything."""
    draw, dim = data.draw, base.norm.weight.shape[0]
    depth = draw(st.integers(1, 6), "visits")
    seed = draw(st.integers(0, 2**31), "seed")

    def branch(visit: int) -> Branch:
        by = draw(st.sampled_from(["no", "ops", "table"]), "by")
        onward = st.none() | st.sampled_from([*range(visit + 1, depth), END])
        kind, soft = draw(st.sampled_from(["dense", "deep", "look"]), "kind"), draw(st.booleans(), "soft")
        made = router(seed + visit, dim, kind, cut=0.5 if kind == "deep" else 0.0, soft=soft)
        then = draw(st.none() | onward if visit else st.none(), "then")
        return Branch(by, made if by == "ops" else None, then, None if by == "no" else draw(onward, "otherwise"))

    layers = []
    for visit in range(depth):
        draws = torch.Generator().manual_seed(seed + visit)
        sizes = ((6, dim), (6, dim), (dim, 6))
        adapter = AdapterTensors(*(random(draws, *size) for size in sizes)) if draw(st.booleans(), "adapter") else None
        mlp = branch(visit) if draw(st.booleans(), "halves") else None
        absent, own = draw(st.sampled_from(["project", "nothing"]), "absent"), draw(st.booleans(), "base")
        whole = mlp is None and adapter is None and draw(st.booleans(), "whole")
        first = branch(visit)
        first = first._replace(then=None) if mlp is not None and own else first
        layers.append(
            base.layers[draw(st.integers(0, 5), "block")]._replace(
                branch=first, mlp_branch=mlp, adapter=adapter, absent=absent, base=own, whole=whole
            )
        )
    way = definition.program_of(base._replace(layers=tuple(layers)))  # the base runs what it comes to, and no more
    comes = {way.visit_of[s] for s in way.base_way}
    layers = [layer._replace(base=layer.base and visit in comes) for visit, layer in enumerate(layers)]
    model = base._replace(layers=tuple(layers))
    batch = batch_for(model)
    places = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=9, unique=True), "places")
    check(model, batch, tokens_of(batch, model, places, seed))


@pytest.mark.parametrize("isa", all_isas())
@torch.no_grad()
def test_after_an_exit_nothing_is_read(isa, base, batch_for):
    """Weights behind it hold NaN, and so does every entry of the cache that nobody left."""
    nan = {name: Linear(torch.full_like(getattr(base.layers[5], name).weight, math.nan)) for name in "kvqo"}
    layers = [layer._replace(absent="nothing") for layer in base.layers]
    layers[2] = layers[2]._replace(branch=Branch("table", otherwise=END))
    layers[3:] = [layer._replace(branch=Branch("table"), **nan) for layer in layers[3:]]
    model = base._replace(layers=tuple(layers))
    batch = batch_for(model)
    inputs = batch.inputs(PLACES)._replace(given=torch.zeros(6, len(PLACES), dtype=torch.uint8))
    cache, out = batch.cache(), batch.output(len(PLACES))
    cache = cache._replace(k=torch.full_like(cache.k, math.nan), v=torch.full_like(cache.v, math.nan))
    cache.table[3:] = -1  # nothing will be there
    cache.held.zero_()
    counters = NativeModel(model, isa=isa).forward(inputs, cache, out)
    assert out.logits.isfinite().all() and out.keep.sum(1).tolist() == [9, 9, 0, 0, 0, 0]
    assert (counters.rows_run, counters.layers_run) == (18, 2)
    assert cache.held.sum() == 2 * len(PLACES)
    count(model, inputs, out.keep.bool(), counters)


@torch.no_grad()
def test_what_cannot_be_a_program_is_refused(base, batch_for):
    def with_branch(branch: Branch) -> ModelTensors:
        return base._replace(layers=(*base.layers[:2], base.layers[2]._replace(branch=branch), *base.layers[3:]))

    dim = base.norm.weight.shape[0]
    refused = [
        (Branch("table", otherwise=1), "step 2: otherwise is visit 1, which does not come after visit 2"),
        (Branch(then=6), "step 2: then is visit 6"),
        (Branch("ops", RouterTensors((Dense(torch.ones(2, dim)),))), "must leave one number, not 2"),
        (Branch("ops", RouterTensors((Act("tanh"),))), "must be a Dense or a Look"),
        (Branch("ops", RouterTensors((Look(1), Dense(torch.ones(1, 2))))), "looks at 1 tokens"),
        (Branch("ops", RouterTensors((Look(), Dense(torch.ones(1, 3))))), "does not take the 2 numbers"),
        (Branch("ops"), "has no router"),
    ]
    for branch, message in refused:
        with pytest.raises(ValueError, match=message):
            NativeModel(with_branch(branch))
    model = with_branch(Branch("open"))
    batch = batch_for(model)
    with pytest.raises(ValueError, match="give `decide`"):
        NativeModel(model).forward(batch.inputs(PLACES), batch.cache(), batch.output(len(PLACES)))


@torch.no_grad()
def test_a_step_that_waits_shows_the_stream(base, batch_for):
    """x and z are those of the definition, of the tokens that wait; weights that Python gives are taken."""
    open_ = Branch("open")
    layers = [
        layer._replace(branch=open_, mlp_branch=open_) if i == 3 else layer for i, layer in enumerate(base.layers)
    ]
    model, seen = base._replace(layers=tuple(layers)), []
    batch = batch_for(model)
    inputs = batch.inputs(PLACES)
    inputs.offsets[4] = math.inf

    def decide(waiting: Waiting) -> Decided:
        seen.append(Waiting(waiting.step, *(part.clone() for part in waiting[1:])))
        weight = torch.linspace(0.1, 0.9, len(PLACES))
        return Decided(torch.arange(len(PLACES)) % 2 == 0, weight)

    out = batch.output(len(PLACES))
    NativeModel(model).forward(inputs, batch.cache(), out, decide=decide)
    expected = definition.forward_pass(model, inputs, batch.cache(), decide)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(out.keep, expected.keep) and len(seen) == 4
    norms = base.layers[3].before_attn, base.layers[3].before_mlp
    for mine, theirs, norm in zip(seen[:2], seen[2:], norms, strict=True):
        assert mine.step == theirs.step and torch.equal(mine.here, theirs.here) and not mine.here[4]
        torch.testing.assert_close(mine.z[mine.here], theirs.z[mine.here], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine.z[mine.here], rms_norm(mine.x, *norm)[mine.here], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROGRAMS)
@torch.no_grad()
def test_a_token_comes_out_as_alone_on_any_number_of_threads(name, base, batch_for):
    """Bit for bit, in bf16, K and V included."""
    model = wide_model(PROGRAMS[name](base), torch.bfloat16)
    batch, native = batch_for(model), NativeModel(model)
    inputs = tokens_of(batch, model, PLACES)
    together, apart, out = batch.cache(), batch.cache(), batch.output(len(PLACES))
    native.forward(inputs, together, out)
    before = torch.get_num_threads()
    try:
        for i in range(len(PLACES)):
            torch.set_num_threads(1 + i % 3)
            one = PassTokens(*(part[..., i : i + 1].contiguous() for part in inputs if part is not None))
            alone: Any = batch.output(1)
            native.forward(one, apart, alone)
            assert torch.equal(alone.logits[0], out.logits[i]) and torch.equal(alone.keep[:, 0], out.keep[:, i])
    finally:
        torch.set_num_threads(before)
    for mine, other in zip(together, apart, strict=True):
        assert mine is None or torch.equal(mine, other)


@pytest.mark.parametrize("name", PROGRAMS)
@torch.no_grad()
def test_a_pass_can_stop_anywhere_and_go_on(name, base, batch_for):
    """After any number of steps, with another pass in between."""
    model = PROGRAMS[name](base)
    batch, native = batch_for(model), NativeModel(model)
    inputs, asked = tokens_of(batch, model, PLACES), torch.arange(len(PLACES), dtype=torch.int32)
    whole, cache = batch.output(len(PLACES)), batch.cache()
    counters = native.forward(inputs, cache, whole)
    room = [torch.empty(len(PLACES), 64), torch.empty(len(PLACES), 64), torch.empty(len(PLACES), dtype=torch.int32)]
    for last in range(1, native.steps):
        out, apart, call = batch.output(len(PLACES)), batch.cache(), PassSpec()
        native._fill(call, inputs, apart, out, asked)
        call.x, call.z, call.at = (part.data_ptr() for part in room)
        stood = native._library.depthdial_steps(native._team(), call, 0, last)
        assert stood in (last, END)
        if stood == last:
            native.forward(batch.inputs(PLACES), batch.cache(), batch.output(len(PLACES)))
            assert native._library.depthdial_steps(native._team(), call, last, END) == END
        assert torch.equal(out.logits, whole.logits) and torch.equal(out.keep, whole.keep)
        assert torch.equal(cache.k, apart.k) and torch.equal(cache.v, apart.v)
        assert (call.rows_run, call.weight_bytes, call.looks) == (counters[0], counters[2], counters.looks)
