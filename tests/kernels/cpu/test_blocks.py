"""Weights in blocks: every kind is its definition, the unpacked matrix, on every instruction set and in any company."""

import math

import pytest
import torch
from tests.kernels.cpu.test_native import PLACES, both

from depthdial.kernels.blocks import FORMS, Blocks, Parts, lay_out
from depthdial.kernels.cpu.build import all_isas
from depthdial.kernels.cpu.native import NativeModel
from depthdial.kernels.tensors import LayerTensors, Linear, ModelTensors

NAMES = ("q", "k", "v", "o", "gate", "up", "down")
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "head_dim": 64}
"""Widths that groups of eight blocks divide."""
ODD = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "head_dim": 16}
"""Blocks that do not come in pairs, as activations in int8 do."""


def random_blocks(kind: str, rows: int, cols: int, seed: int) -> Blocks:
    """Codes and small scales of all values, weights of about 0.03."""
    generator, form = torch.Generator().manual_seed(seed), FORMS[kind]
    codes = torch.randint(0, 1 << form.bits, (rows, cols), generator=generator, dtype=torch.uint8)
    blocks, size, small = cols // 32, 0.06 / (1 << form.bits), None
    if form.grouped:
        small = torch.randint(0, 64, (rows, blocks, 2), generator=generator, dtype=torch.uint8)
        small = small if kind != "Q6_K" else small * 4  # signed: every byte may stand
        blocks, size = blocks // 8, size / 40
    wide = torch.rand(rows, blocks, 1 if form.least and not form.grouped else 2, generator=generator) * size
    if not form.least:  # about as much below 0 as above
        wide[..., 1] = 0.03 / 40 if form.grouped else -0.03
    return lay_out(kind, Parts(codes, wide.half(), small))


def in_blocks(model: ModelTensors, kind: str, other: str | None = None) -> ModelTensors:
    """Its matrices replaced by random ones of a kind; v and down may be of another one."""
    seeds = iter(range(1000))

    def layer(of: LayerTensors) -> LayerTensors:
        made = {}
        for name in NAMES:
            if (linear := getattr(of, name)) is not None:
                rows, cols = linear.weight.shape
                chosen = other if other and name in ("v", "down") else kind
                made[name] = Linear(random_blocks(chosen, rows, cols, next(seeds)), linear.bias)
        return of._replace(**made)

    assert isinstance(model.embed, torch.Tensor)
    embed = random_blocks(kind, *model.embed.shape, seed=next(seeds))
    return model._replace(embed=embed, head=embed, layers=tuple(layer(of) for of in model.layers))


def unpacked(model: ModelTensors, dtype: torch.dtype = torch.float32) -> ModelTensors:
    """The same as matrices."""

    def layer(of: LayerTensors) -> LayerTensors:
        linears = {name: getattr(of, name) for name in NAMES}
        return of._replace(**{n: Linear(x.weight.to(dtype), x.bias) for n, x in linears.items() if x is not None})

    assert isinstance(model.embed, Blocks)
    embed = model.embed.to(dtype)
    return model._replace(embed=embed, head=embed, layers=tuple(layer(of) for of in model.layers))


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("kind", FORMS)
@torch.no_grad()
def test_every_kind_is_its_definition(kind: str, isa: str, tiny_model, tensors_of, routed, batch_for):
    """fp32 activations: the unpacked matrix, to rounding; in int8: the unpacked matrix by quantised activations."""
    sizes = WIDE if FORMS[kind].grouped else ODD
    model = in_blocks(tensors_of(tiny_model("llama", **sizes)), kind)
    batch = batch_for(model)
    inputs = batch.inputs(PLACES, offset=math.inf)
    (out, counters, ours), (expected, meant) = both(model, batch, inputs, isa)
    native, exact, theirs = NativeModel(model, isa=isa), batch.output(len(PLACES)), batch.cache()
    native.forward(inputs, theirs, exact, reading=True)
    (plain, wide, caches), _ = both(unpacked(model), batch, inputs, isa)
    torch.testing.assert_close(exact.logits, plain.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.k, caches.k, rtol=1e-4, atol=1e-4)
    first = ours.table[0].flatten().long()  # pages of the first layer: embeddings, the norm and one product
    for cache, their in ((ours.k, meant.k), (ours.v, meant.v)):
        close = (cache[first] - their[first]).abs() < 1e-5 * (1 + their[first].abs())
        assert close.float().mean() > 0.98, "another order of sums may flip the rounding of an activation, seldom"
    error = (out.logits - expected.logits).norm(dim=1) / expected.logits.norm(dim=1)
    assert error.max() < 0.1
    assert 0 < (out.logits - plain.logits).norm() < 0.1 * plain.logits.norm()
    assert native.narrow and counters.weight_bytes == weight_bytes(model, len(PLACES)) < 0.3 * wide.weight_bytes


def weight_bytes(model: ModelTensors, tokens: int) -> int:
    """What a dense pass reads."""
    weights = [getattr(layer, name).weight for layer in model.layers for name in NAMES]
    assert isinstance(model.head, Blocks)
    row = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
    group = {"Q4_K": 148, "Q5_K": 180, "Q6_K": 212}  # of which the file has 144, 176 and 210

    def size(weight: Blocks, rows: int) -> int:
        own = row[weight.kind] * weight.cols // 32 if weight.kind in row else group[weight.kind] * weight.cols // 256
        return rows * own

    return sum(size(w, w.rows) for w in weights) + size(model.head, model.head.rows) + size(model.head, tokens)


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize(("kind", "other"), [("Q4_1", "Q8_0"), ("Q4_K", "Q6_K"), ("Q8_0", None)])
@torch.no_grad()
def test_bf16_activations_meet_the_files_own_numbers(kind, other, isa, tiny_model, tensors_of, batch_for):
    """In a bf16 model weights are not rounded to bf16: from the same in fp32 it is about as far as the model whose
    weights are."""
    model = in_blocks(tensors_of(tiny_model("llama", **WIDE).bfloat16()), kind, other)
    batch = batch_for(model)
    inputs = batch.inputs(PLACES, offset=math.inf)
    wide = unpacked(model)
    narrow = unpacked(model, torch.bfloat16)
    out, rounded, exact = (batch.output(len(PLACES)) for _ in range(3))
    NativeModel(model, isa=isa).forward(inputs, batch.cache(), out, reading=True)
    NativeModel(narrow, isa=isa).forward(inputs, batch.cache(), rounded)
    cache = batch.cache()
    fp32 = in_fp32(wide)
    NativeModel(fp32, isa=isa).forward(inputs, cache._replace(k=cache.k.float(), v=cache.v.float()), exact)
    error, other_error = ((found.logits - exact.logits).norm() for found in (out, rounded))
    assert error < 2 * other_error < 0.1 * exact.logits.norm()


def in_fp32(model: ModelTensors) -> ModelTensors:
    def layer(of: LayerTensors) -> LayerTensors:
        names = [n for n, part in of._asdict().items() if hasattr(part, "eps")]
        return of._replace(**{n: getattr(of, n)._replace(weight=getattr(of, n).weight.float()) for n in names})

    norm = model.norm._replace(weight=model.norm.weight.float())
    return model._replace(norm=norm, layers=tuple(layer(of) for of in model.layers))


@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("reading", [False, True])
@torch.no_grad()
def test_a_token_is_the_same_in_any_company(isa: str, reading: bool, tiny_model, tensors_of, routed, batch_for):
    """Whatever other tokens are in the pass, 1 to 64 of them, bit for bit: plug-ins on top, whose routers differ."""
    model = routed(in_blocks(tensors_of(tiny_model("llama", **ODD).bfloat16()), "Q4_1", "Q5_0"))
    batch, native = batch_for(model), NativeModel(model, isa=isa)
    inputs = batch.inputs([(s, p) for s in range(4) for p in range(100, 116)])
    kept, first = set(), None
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 64):
        cache, out = batch.cache(), batch.output(count)
        some = type(inputs)(*(None if part is None else part[:count].contiguous() for part in inputs))
        native.forward(some, cache, out, reading=reading)
        kept |= set(out.keep[2:].unique().tolist())
        first = out.logits[0] if first is None else first
        assert torch.equal(out.logits[0], first)
    assert kept == {0, 1}, "routers did differ"


@pytest.mark.parametrize("threads", [2, 3])
@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits(threads: int, tiny_model, tensors_of, batch_for):
    model = in_blocks(tensors_of(tiny_model("llama", **ODD)), "Q5_1")
    batch, native, before, found = batch_for(model), NativeModel(model), torch.get_num_threads(), []
    inputs = batch.inputs(PLACES)
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            out = batch.output(len(PLACES))
            native.forward(inputs, batch.cache(), out)
            found.append(out.logits)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
