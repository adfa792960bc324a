import math
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels import definition
from tests.kernels.cpu.programs import wide_model
from tests.laws.cover import NATIVE

from depthdial.kernels.cpu.build import all_isas
from depthdial.kernels.cpu.native import NativeModel
from depthdial.kernels.pack import packed
from depthdial.kernels.passing import PassTokens
from depthdial.kernels.tensors import PAGE, Branch, Int8, ModelTensors

PLACES = [(0, 0), (1, 63), (1, 64), (1, 65), (2, 130), (3, 7), (0, 1), (2, 131), (3, 8)]
"""(sequence, position) of tokens: alone, several of one sequence, and on both sides of a page's edge."""


def both(model, batch, inputs, isa=None, weights=None, meant=None, **more):
    """(native outputs, counters, native caches), (reference, its caches) for the same inputs."""
    native, count = NativeModel(model, weights, isa), len(inputs.ids)
    ours, theirs = batch.cache(), batch.cache()
    out = batch.output(count)._replace(argmax=torch.full((count,), -1))
    counters = native.forward(inputs, ours, out, **more)
    assert torch.equal(out.argmax, out.logits.argmax(-1))
    return (out, counters, ours), (definition.forward_pass(meant or model, inputs, theirs, **more), theirs)


def assert_equal(left, right, rtol=1e-4, atol=1e-4):
    (out, _, ours), (expected, theirs) = left, right
    assert torch.equal(out.keep, expected.keep)
    torch.testing.assert_close(out.score, expected.score, rtol=rtol, atol=atol)
    torch.testing.assert_close(out.logits, expected.logits, rtol=rtol, atol=atol)
    for cache, their in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(cache, their, rtol=rtol, atol=atol)


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("family", NATIVE)
@torch.no_grad()
def test_every_family_in_fp32(family, isa, tiny_model, tensors_of, routed, batch_for):
    model = routed(tensors_of(tiny_model(family)), soft=family == "qwen3")
    batch = batch_for(model)
    for places in (PLACES, PLACES[:1], PLACES[4:8]):
        left, right = both(model, batch, batch.inputs(places), isa)
        assert_equal(left, right)
    assert 0 < right[0].keep[2:].float().mean() < 1  # rows did differ


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize(
    ("tokens", "family", "head_dim"),
    [
        (1, "llama", 16),
        (2, "llama", 64),
        (5, "llama", 16),
        (9, "llama", 128),
        (9, "gemma3_text", 64),
        (9, "gemma2", 64),
        (5, "olmo2", 64),
        (5, "granite", 64),
        (5, "ernie4_5", 64),
    ],
)
@torch.no_grad()
def test_bf16_within_its_rounding(isa, tokens, family, head_dim, tiny_model, tensors_of, batch_for):
    """Attention has ways of its own for heads of 64 and 128, windows that begin in the middle of a page among them."""
    model = tensors_of(tiny_model(family, hidden_size=64, intermediate_size=160, head_dim=head_dim).bfloat16())
    batch = batch_for(model)
    inputs, exact = batch.inputs(PLACES[:tokens]), batch.cache()
    (out, _, ours), (expected, theirs) = both(model, batch, inputs, isa)
    exact = exact._replace(k=exact.k.float(), v=exact.v.float())
    logits = definition.forward_pass(wide_model(model, torch.float32), inputs, exact).logits
    found = (out.logits, ours.k, ours.v), (expected.logits, theirs.k, theirs.v), (logits, exact.k, exact.v)
    for mine, other, wide in zip(*found, strict=True):  # from the same in fp32 no farther than the definition in bf16
        error, unit = (mine.float() - wide).norm(), wide.norm()
        assert error < 1.2 * (other.float() - wide).norm() + 1e-3 * unit and error < 0.04 * unit


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize(("family", "width"), [("llama", 72), ("qwen2", 128), ("gemma3_text", 72)])
@torch.no_grad()
def test_int8_is_its_definition(isa, family, width, tiny_model, tensors_of, routed, batch_for):
    """Widths that fill whole lines of 64 and widths that do not; so do the rows, 16 of which a tile takes."""
    model = routed(tensors_of(tiny_model(family, hidden_size=width, intermediate_size=width + 64)))
    batch, small = batch_for(model), packed(model)
    inputs = batch.inputs(PLACES, offset=math.inf)
    (out, counters, _), (expected, _) = both(model, batch, inputs, isa, "int8", small)
    # a sum in another order may flip the rounding of an activation: a whole step, in few tokens
    error = (out.logits - expected.logits).norm(dim=1) / expected.logits.norm(dim=1)
    assert error.median() < 2e-3 and error.max() < 0.1
    exact, _ = both(model, batch, inputs, isa)
    assert (out.logits - exact[0].logits).norm() < 0.2 * expected.logits.norm()
    assert counters.weight_bytes < 0.4 * exact[1].weight_bytes


def tabled(model: ModelTensors) -> ModelTensors:
    """Every layer without a router is decided by a table."""
    layers = (v if v.branch.by == "ops" else v._replace(branch=Branch("table")) for v in model.layers)
    return model._replace(layers=tuple(layers))


@settings(deadline=None, max_examples=25)
@given(data=st.data())
@torch.no_grad()
def test_any_mixture_of_rows(data, tiny_model, tensors_of, routed, batch_for):
    count = data.draw(st.integers(1, 64), "tokens")
    every = [(sequence, position) for sequence in range(4) for position in range(3 * PAGE)]
    places = data.draw(st.lists(st.sampled_from(every), min_size=count, max_size=count, unique=True), "places")
    model = routed(
        tensors_of(tiny_model(data.draw(st.sampled_from(["llama", "gemma3_text"])))),
        first=data.draw(st.integers(0, 6), "first"),
        soft=data.draw(st.booleans(), "soft"),
        order=data.draw(st.sampled_from(["norm_tanh", "tanh_norm", "linear"])),
    )
    batch = batch_for(model)
    inputs = batch.inputs(places)
    offset = st.sampled_from([0.0, -1.5, 1.5, math.inf, -math.inf])
    inputs = inputs._replace(
        offsets=torch.tensor(data.draw(st.lists(offset, min_size=count, max_size=count), "offsets"))
    )
    table = data.draw(st.none() | st.integers(0, 2**31), "given")
    if table is not None:
        generator = torch.Generator().manual_seed(table)
        inputs = inputs._replace(given=torch.randint(0, 2, (6, count), generator=generator, dtype=torch.uint8))
        model = tabled(model)
    assert_equal(*both(model, batch, inputs))


@torch.no_grad()
def test_what_is_skipped_is_not_read(tiny_model, tensors_of, batch_for):
    """Weights that must not be read are NaN: one product with them would show."""
    model = tabled(tensors_of(tiny_model()))
    layer = model.layers[3]
    ruined = layer._replace(
        **{name: part._replace(weight=torch.full_like(part.weight, math.nan))
           for name, part in ((n, getattr(layer, n)) for n in ("q", "o", "gate", "up", "down"))}
    )  # fmt: skip
    broken = model._replace(layers=(*model.layers[:3], ruined, *model.layers[4:]))
    batch = batch_for(model)
    table = torch.ones(6, len(PLACES), dtype=torch.uint8)
    table[3] = 0
    inputs = batch.inputs(PLACES)._replace(given=table)
    (out, skipping, _), (expected, _) = both(broken, batch, inputs, meant=model)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-4)
    table[3, 4] = 1
    (_, running, _), _ = both(model, batch, inputs)
    spared = sum(getattr(layer, name).weight.numel() * 4 for name in ("q", "o", "gate", "up", "down"))
    assert running.weight_bytes - skipping.weight_bytes == spared
    assert (running.rows_run - skipping.rows_run, running.layers_run - skipping.layers_run) == (1, 1)


@torch.no_grad()
def test_counts_are_those_of_the_route(tiny_model, tensors_of, routed, batch_for):
    model = routed(tensors_of(tiny_model("llama")))
    batch = batch_for(model)
    (out, counters, _), _ = both(model, batch, batch.inputs(PLACES))
    keep = out.keep.bool()
    assert counters.rows_run == keep.sum() and counters.layers_run == keep.any(1).sum()
    size = [0] * 6
    for index, layer in enumerate(model.layers):
        always = [layer.k.weight, layer.v.weight] + ([layer.branch.router.ops[0].weight] if layer.branch.router else [])
        kept = [getattr(layer, name).weight for name in ("q", "o", "gate", "up", "down")] if keep[index].any() else []
        skipped = list(layer.adapter or []) if not keep[index].all() else []
        size[index] = sum(4 * weight.numel() for weight in (*always, *kept, *skipped))
    assert not isinstance(model.head, Int8) and not isinstance(model.embed, Int8)
    around = 4 * (model.head.numel() + len(PLACES) * model.embed.shape[1])
    assert counters.weight_bytes == sum(size) + around
    seen = torch.tensor([position + 1 for _, position in PLACES])
    assert counters.kv_bytes == (keep.sum(0) * seen).sum() * 2 * 4 * 2 * 8


@torch.no_grad()
def test_without_logits_or_argmax_the_head_is_not_read(tiny_model, tensors_of, batch_for):
    model = tensors_of(tiny_model())
    batch, native = batch_for(model), NativeModel(model)
    inputs, out = batch.inputs(PLACES), batch.output(len(PLACES))
    whole = native.forward(inputs, batch.cache(), out)
    part = native.forward(inputs, batch.cache(), out._replace(logits=None))
    assert not isinstance(model.head, Int8)
    assert whole.weight_bytes - part.weight_bytes == 4 * model.head.numel()


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits(threads, tiny_model, tensors_of, routed, batch_for):
    model = routed(tensors_of(tiny_model("qwen3")))
    batch, native = batch_for(model), NativeModel(model)
    before, results, inputs = torch.get_num_threads(), [], batch.inputs(PLACES)
    try:
        for count in (1, threads, threads):
            torch.set_num_threads(count)
            out = batch.output(len(PLACES))
            native.forward(inputs, batch.cache(), out)
            results.append(out.logits)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


@torch.no_grad()
def test_mistakes_are_told_before_anything_runs(tiny_model, tensors_of, batch_for):
    model = tensors_of(tiny_model())
    batch, native = batch_for(model), NativeModel(model)
    good, cache, out = batch.inputs(PLACES), batch.cache(), batch.output(len(PLACES))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"ids": good.ids.int()}, "ids must be a contiguous torch.int64"),
        ({"offsets": good.offsets[:3]}, "offsets must be"),
        ({"k": cache.k.transpose(2, 3)}, "k must be"),
        ({"given": torch.ones(5, len(PLACES), dtype=torch.uint8)}, "given must be"),
        ({"ids": good.ids + 300}, "token id is outside"),
        ({"sequences": good.sequences + 4}, "not a row of the page table"),
        ({"positions": good.positions + 3 * PAGE}, "beyond the pages"),
        ({"table": cache.table + 100}, "page that the cache does not have"),
    ]
    for change, message in wrong:
        ours = cache._replace(**{name: change[name] for name in change if name in cache._fields})
        mine = good._replace(**{name: change[name] for name in change if name in good._fields})
        with pytest.raises(ValueError, match=message):
            native.forward(mine, ours, out)
    with pytest.raises(ValueError, match="1 to 64 tokens, not 65; run more in several"):
        native.forward(batch.inputs([(0, p) for p in range(65)]), cache, batch.output(65))


def test_what_cannot_run_is_refused(tiny_model, tensors_of):
    model = tensors_of(tiny_model())
    refused: list[tuple[dict[str, Any], str]] = [
        ({"weights": "int4"}, "weights must be"),
        ({"weights": "bf16"}, "load it in the dtype"),
        ({"isa": "neon9"}, "this processor does not run"),
        ({"max_tokens": 65}, "max_tokens"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            NativeModel(model, **options)
    with pytest.raises(ValueError, match=r"not torch\.float16"):
        NativeModel(tensors_of(tiny_model().half()))


@torch.no_grad()
def test_a_forked_child_has_threads_of_its_own(tiny_model, tensors_of, batch_for):
    model = tensors_of(tiny_model())
    batch, native = batch_for(model), NativeModel(model)
    inputs, cache, out = batch.inputs(PLACES), batch.cache(), batch.output(len(PLACES))
    native.forward(inputs, cache, out)
    expected, shared = out.logits.clone(), out.logits.zero_().share_memory_()
    child = multiprocessing.get_context("fork").Process(target=native.forward, args=(inputs, cache, out))
    child.start()
    child.join(60)
    assert child.exitcode == 0 and torch.equal(shared, expected)


@torch.no_grad()
def test_where_threads_are_refused_fewer_do_the_work(tiny_model, tensors_of, batch_for):
    model = tensors_of(tiny_model())
    batch = batch_for(model)
    inputs, cache, out = batch.inputs(PLACES), batch.cache(), batch.output(len(PLACES))
    NativeModel(model).forward(inputs, cache, out)
    expected, shared = out.logits.clone(), out.logits.zero_().share_memory_()

    def child() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**27
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # room for the stacks of a few threads
        torch.set_num_threads(200)
        native = NativeModel(model)
        native.forward(inputs, cache, out)
        count = len(list(Path("/proc/self/task").iterdir()))
        assert 1 < count < 150, count

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0 and torch.equal(shared, expected)


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("weights", ["bf16", "int8"])
@torch.no_grad()
@pytest.mark.parametrize(("family", "width"), [("llama", 64), ("qwen2", 72)])
@pytest.mark.parametrize(("count", "reading"), [(9, False), (2, False), (17, False), (64, False), (17, True)])
def test_tokens_come_out_as_alone(
    isa, weights, family, width, count, reading, tiny_model, tensors_of, routed, batch_for
):
    """Bit for bit, K and V included."""
    made = tiny_model(family, hidden_size=width, intermediate_size=128, head_dim=16).bfloat16()
    model = routed(tensors_of(made), soft=True)
    batch = batch_for(model)
    places = (PLACES + [(i % 4, 135 + i) for i in range(55)])[:count]
    inputs = batch.inputs(places)
    native, together, apart = NativeModel(model, weights, isa), batch.cache(), batch.cache()
    out = batch.output(count)
    native.forward(inputs, together, out, reading=reading)
    for i in range(count):
        one = PassTokens(*(part[i : i + 1].contiguous() for part in inputs[:4]))
        alone = batch.output(1)
        native.forward(one, apart, alone, reading=reading)
        assert torch.equal(alone.logits[0], out.logits[i])
        assert torch.equal(alone.keep[:, 0], out.keep[:, i])
    for cache, other in zip(together[:2], apart[:2], strict=True):
        assert torch.equal(cache, other)


def test_the_reader_reads_everything(tiny_model, tensors_of):
    """What the limit of bandwidth rests on: the sum of all that lies in memory, whoever's share it is."""
    native = NativeModel(tensors_of(tiny_model("llama")))
    numbers = torch.arange(64 * 1000 * torch.get_num_threads())
    size = numbers.numel() * 8
    assert native.read(numbers) == size
    assert native._library.depthdial_read(native._team(), numbers.data_ptr(), size) == numbers.sum()
