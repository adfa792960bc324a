"""Passes that jump, loop, leave, part within a layer, look at the head or wait for Python: against the definition, in
the small pass and in tiles, with what they counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depthdial.kernels import reference
from depthdial.kernels.cpu.build import EMULATED, all_isas
from depthdial.kernels.cpu.native import Counters, NativeModel
from depthdial.kernels.tensors import (
    END,
    Act,
    AdapterTensors,
    Branch,
    Decided,
    Dense,
    LayerTensors,
    Linear,
    Look,
    ModelTensors,
    Norm,
    Op,
    PassTokens,
    RouterTensors,
    Waiting,
)

PLACES = [(0, 0), (1, 63), (1, 64), (1, 65), (2, 130), (3, 7), (0, 1), (2, 131), (3, 8)]
SIZES = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 32}
"""Whole tiles, so that the same programs can run in tiles."""
ATTENTION, MLP = ("q", "o"), ("gate", "up", "down")


@pytest.fixture(scope="module")
def base(tiny_model: Callable, tensors_of: Callable) -> ModelTensors:
    return tensors_of(tiny_model("llama", **SIZES))


def random(generator: torch.Generator, *shape: int, scale: float = 0.3) -> Tensor:
    return torch.randn(shape, generator=generator) * scale


def router(seed: int, dim: int, kind: str = "dense", **more: Any) -> RouterTensors:
    draw = torch.Generator().manual_seed(seed)
    ops: dict[str, tuple[Op, ...]] = {
        "dense": (Dense(random(draw, 5, dim)), Norm(1 + random(draw, 5), 1e-6), Act("tanh"), Dense(random(draw, 1, 5))),
        "deep": (
            *(Dense(random(draw, 20, dim), random(draw, 20)), Act("silu"), Dense(random(draw, 3, 20), random(draw, 3))),
            *(Act("gelu"), Dense(random(draw, 4, 3)), Act("relu"), Dense(random(draw, 1, 4)), Act("sigmoid")),
        ),
        "look": (Look(200), Dense(torch.tensor([[30.0, -40.0]]), torch.tensor([-0.2]))),
    }  # fmt: skip
    return RouterTensors(ops[kind], **more)


def tokens_of(batch: Any, model: ModelTensors, places: list[tuple[int, int]], seed: int = 5) -> PassTokens:
    """Some of them on the untouched base; every table decided by lot."""
    draw = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0.0, 0.3, -0.3, math.inf])[torch.randint(0, 4, (len(places),), generator=draw)]
    table = torch.randint(0, 2, (len(model.steps), len(places)), generator=draw, dtype=torch.uint8)
    return batch.inputs(places)._replace(offsets=offsets, given=table)


def opened(model: ModelTensors, table: Tensor) -> tuple[ModelTensors, Callable[[Waiting], Decided], list[Waiting]]:
    """Every step that a table decides is decided in the middle of the pass, by the same table; and where it waited."""

    def wait(branch: Branch | None) -> Any:
        return branch._replace(by="open") if branch is not None and branch.by == "table" else branch

    seen: list[Waiting] = []

    def decide(waiting: Waiting) -> Decided:
        seen.append(Waiting(waiting.step, waiting.here.clone(), waiting.x.clone(), waiting.z.clone()))
        return Decided(table[waiting.step].bool())

    layers = [v._replace(branch=wait(v.branch), mlp_branch=wait(v.mlp_branch)) for v in model.layers]
    return model._replace(layers=tuple(layers)), decide, seen


def check(model: ModelTensors, batch: Any, inputs: PassTokens, isa: str | None = None) -> Any:
    """The native pass, against the definition in everything; what it gave, and its counters."""
    native, ours, theirs = NativeModel(model, isa=isa), batch.cache(), batch.cache()
    out = batch.output(len(inputs.ids))
    counters = native.forward(inputs, ours, out)
    expected = reference.forward_pass(model, inputs, theirs)
    assert torch.equal(out.keep, expected.keep)
    torch.testing.assert_close(out.score, expected.score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    count(model, inputs, out.keep.bool(), counters)
    cut, decide, seen = opened(model, inputs.given)
    if any(step.branch.by == "open" for step in cut.steps):
        again, apart = batch.output(len(inputs.ids)), batch.cache()
        summed = NativeModel(cut, isa=isa).forward(inputs, apart, again, decide=decide)
        assert torch.equal(again.logits, out.logits) and torch.equal(again.keep, out.keep)
        assert torch.equal(ours.k, apart.k) and torch.equal(ours.v, apart.v)
        assert summed == counters
    return out, counters, seen


def count(model: ModelTensors, inputs: PassTokens, keep: Tensor, counters: Counters) -> None:
    """Every matrix is read where somebody needs it, and nowhere else."""
    free = inputs.offsets != math.inf
    waits = _waiting(model, inputs, keep)
    size = looks = rows = layers = 0
    seen = 0
    for visit, layer in enumerate(model.layers):
        mine = [s for s, step in enumerate(model.steps) if step.visit == visit]
        attends, feeds = keep[mine[0]], keep[mine[-1]]
        ran = attends | feeds
        rows, layers = rows + int(ran.sum()), layers + bool(ran.any())
        needed = ["k", "v"] if layer.absent == "project" or attends.any() else []
        needed += [*ATTENTION] if attends.any() else []
        needed += [*MLP] if feeds.any() else []
        size += sum(getattr(layer, name).weight.numel() for name in needed)
        if layer.adapter is not None and (waits[mine[-1]] & ~feeds & free).any():
            size += sum(part.numel() for part in layer.adapter)
        for s in mine:
            branch, asked = model.steps[s].branch, waits[s] & free
            if branch.router is None or not asked.any():
                continue
            first = branch.router.ops[0]
            looks += int(asked.sum()) if isinstance(first, Look) else 0
            size += first.rows * model.norm.weight.numel() if isinstance(first, Look) else first.weight.numel()
        if layer.absent == "project":
            seen += int((attends * (inputs.positions + 1)).sum()) * layer.kv_heads * layer.head_dim * 2 * 4
    size += model.head.numel() + len(inputs.ids) * model.norm.weight.numel()
    assert counters.weight_bytes == model.norm.weight.element_size() * size
    assert (counters.rows_run, counters.layers_run, counters.looks) == (rows, layers, looks)
    if model.norm.weight.dtype == torch.float32 and all(layer.absent == "project" for layer in model.layers):
        assert counters.kv_bytes == seen


def _waiting(model: ModelTensors, inputs: PassTokens, keep: Tensor) -> list[Tensor]:
    """bool [N] for each step: who came to it."""
    begins = [s for s, step in enumerate(model.steps) if step.unit != "mlp"]
    at, waits = torch.zeros(len(inputs.ids), dtype=torch.int64), []
    for s, step in enumerate(model.steps):
        waits.append(at == s)
        for n in waits[-1].nonzero().flatten().tolist():
            target = step.branch.then if keep[s, n] else step.branch.otherwise
            jumps = target is not None and inputs.offsets[n] != math.inf
            at[n] = (target if target == END else begins[target]) if jumps else s + 1
    return waits


def halves(base: ModelTensors) -> ModelTensors:
    """Attention and MLP apart, alone, soft, by table and by routers."""
    dim = base.norm.weight.shape[0]
    by = {
        1: (Branch("ops", router(1, dim)), Branch("ops", router(2, dim, "deep", cut=0.5))),
        2: (Branch("ops", router(3, dim, soft=True)), Branch()),
        3: (Branch(), Branch("ops", router(4, dim, soft=True))),
        4: (Branch("table"), Branch("table")),
    }
    layers = [
        layer._replace(branch=by[i][0], mlp_branch=by[i][1]) if i in by else layer
        for i, layer in enumerate(base.layers)
    ]
    return base._replace(layers=tuple(layers))


def readout(base: ModelTensors) -> ModelTensors:
    """A token leaves where the head is sure enough of it; its K and V above are projected."""
    leave = [Branch("ops", router(i, 0, "look", cut=cut), otherwise=END) for i, cut in ((2, 0.0), (4, 0.1))]
    layers = list(base.layers)
    layers[2], layers[4] = layers[2]._replace(branch=leave[0]), layers[4]._replace(branch=leave[1])
    return base._replace(layers=tuple(layers))


def exits(base: ModelTensors) -> ModelTensors:
    """A block of its own after three layers, which some tokens end with; what they do not run they leave nothing of."""
    layers = [layer._replace(absent="nothing") for layer in base.layers]
    own = base.layers[5]._replace(branch=Branch("table", then=END), absent="nothing", base=False)
    return base._replace(layers=(*layers[:3], own, *layers[3:]))


def loops(base: ModelTensors) -> ModelTensors:
    """Layers 2 and 3 twice, each time with K and V of their own; a gate lets tokens go around the second time."""
    dim, layers = base.norm.weight.shape[0], list(base.layers)
    gate = Branch("ops", router(9, dim, "deep", cut=0.5), otherwise=6)
    again = layers[2]._replace(branch=gate, base=False), layers[3]._replace(base=False)
    return base._replace(layers=(*layers[:4], *again, *layers[4:]))


PROGRAMS = {"halves": halves, "readout": readout, "exits": exits, "loops": loops}


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
        layers.append(
            base.layers[draw(st.integers(0, 5), "block")]._replace(
                branch=branch(visit), mlp_branch=mlp, adapter=adapter, absent=absent, base=own
            )
        )
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
    expected = reference.forward_pass(model, inputs, batch.cache(), decide)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(out.keep, expected.keep) and len(seen) == 4
    for mine, theirs in zip(seen[:2], seen[2:], strict=True):
        assert mine.step == theirs.step and torch.equal(mine.here, theirs.here) and not mine.here[4]
        torch.testing.assert_close(mine.x, theirs.x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine.z[mine.here], theirs.z[mine.here], rtol=1e-4, atol=1e-4)


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


def wide_model(model: ModelTensors, dtype: torch.dtype) -> ModelTensors:
    """The same weights in another dtype; of routers the first operation's."""

    def wide(part: Any) -> Any:
        if isinstance(part, Branch) and part.router is not None:
            first = part.router.ops[0]
            first = first._replace(weight=first.weight.to(dtype)) if isinstance(first, Dense) else first
            return part._replace(router=part.router._replace(ops=(first, *part.router.ops[1:])))
        if isinstance(part, Tensor):
            return part.to(dtype)
        return type(part)(*map(wide, part)) if isinstance(part, Linear | Norm | AdapterTensors | LayerTensors) else part

    layers = tuple(wide(layer) for layer in model.layers)
    return model._replace(embed=wide(model.embed), layers=layers, norm=wide(model.norm), head=wide(model.head))


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
        definition, decide = told(model, out.keep, out.score, dtype)
        cache = batch.cache()
        cache = cache._replace(k=cache.k.to(dtype), v=cache.v.to(dtype))
        passed = reference.forward_pass(definition, inputs, cache, decide)
        assert torch.equal(passed.keep, out.keep)
        found[dtype] = [part.float() for part in (cache.k, cache.v, passed.logits)]
    for mine, theirs, exact in zip((ours.k, ours.v, out.logits), *found.values(), strict=True):
        error, unit = (mine - exact).norm(), exact.norm()
        assert error < 1.3 * (theirs - exact).norm() + 1e-3 * unit and error < 0.1 * unit
    expected = reference.forward_pass(model, inputs, batch.cache())
    same = (expected.keep == out.keep).all(0)
    assert same.float().mean() > 0.8 and (expected.score - out.score)[:, same].abs().mean() < 0.02
    cut, decide, seen = opened(model, inputs.given)
    if name in ("halves", "exits"):
        again, apart = batch.output(len(inputs.ids)), batch.cache()
        summed = NativeModel(cut, isa=EMULATED).prefill(inputs, apart, again, asked, decide)
        assert torch.equal(again.logits, out.logits) and torch.equal(again.keep, out.keep) and seen
        assert torch.equal(ours.k, apart.k) and torch.equal(ours.v, apart.v)
        assert summed == counters
