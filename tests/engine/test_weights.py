"""Narrow weights: near the originals, the same in the native and the torch runner, and in their place when asked."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.native import NativeRunner
from depthdial.engine.weights import (
    first_rows,
    int4,
    int4_head,
    int8,
    look_up,
    matrices,
    multiply,
    narrow_spine,
    size_of,
    widen_mixed,
)
from depthdial.kernels.blocks import Blocks, quantise, unpack
from depthdial.kernels.cpu.build import Unavailable
from depthdial.kernels.pack import int8_pack
from depthdial.kernels.tensors import Int8, Linear
from depthdial.methods import Dense
from depthdial.models import convert
from depthdial.models.block import spine_of

LONG = SamplingParams(max_tokens=24, ignore_eos=True, budget=1.0, logprobs=300)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.integers(1, 9), width=st.integers(1, 40), seed=st.integers(0, 9))
def test_products_and_look_ups_are_those_of_the_unpacked_weight(rows: int, width: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(7, width, generator=generator), torch.randn(rows, width, generator=generator)
    bias, packed = torch.randn(7, generator=generator), int8_pack(weight)
    unpacked = packed.values * packed.scale[:, None]
    assert ((unpacked - weight).abs() <= packed.scale[:, None] * 0.5001).all()
    torch.testing.assert_close(multiply(x, packed, bias), x @ unpacked.T + bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(multiply(x, weight), x @ weight.T)
    ids = torch.randint(0, 7, (rows,), generator=generator)
    torch.testing.assert_close(look_up(ids, packed, torch.float32), unpacked[ids])
    assert size_of(packed) == 7 * width + 7 * 4 and size_of(weight) == 7 * width * 4


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 20), blocks=st.integers(1, 5), kind=st.sampled_from(["Q4_1", "Q8_0"]), seed=st.integers(0, 9)
)
def test_so_are_those_of_blocks(rows: int, blocks: int, kind: str, seed: int):
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(rows, 32 * blocks, generator=generator), torch.randn(3, 32 * blocks, generator=generator)
    packed = quantise(weight, kind)
    unpacked = unpack(packed)
    step = torch.tensor(1 / 15 if kind == "Q4_1" else 1 / 254)
    width = weight.view(rows, blocks, 32).aminmax(dim=-1)
    widest = (width.max - width.min if kind == "Q4_1" else 2 * weight.view(rows, blocks, 32).abs().amax(-1))[..., None]
    error = (unpacked - weight).abs().view(rows, blocks, 32)
    assert (error <= widest * (0.51 * step + 1e-3)).all(), "half a step, and fp16"
    torch.testing.assert_close(multiply(x, packed), x @ unpacked.T)
    ids = torch.randint(0, rows, (7,), generator=generator)
    assert torch.equal(look_up(ids, packed, torch.float32), unpacked[ids])
    assert torch.equal(torch.as_tensor(first_rows(packed, 1)), unpacked[:1]) and first_rows(packed, None) is packed


def test_widths_that_blocks_do_not_divide_are_refused(tiny_model, tiny_tokenizer):
    model = convert(tiny_model("llama", hidden_size=72), Dense())
    with pytest.raises(
        ValueError, match=r"int4 weights .* 72 columns, which do not divide by 32.*; use weights='auto'"
    ):
        LLM.of(model, tiny_tokenizer, weights="int4")


def test_without_a_compiler_they_say_so(made, monkeypatch):
    def nothing(*_: object, **_more: object) -> None:
        raise Unavailable("no C++ compiler was found")

    monkeypatch.setattr("depthdial.engine.assemble.NativeRunner", nothing)
    with pytest.raises(ValueError, match=r"int4 weights need the native kernels \(no C\+\+ .*; use weights='auto'"):
        made(weights="int4")


def test_what_takes_the_same_tokens_is_in_blocks_together_or_not_at_all():
    plain, narrow = Linear(torch.ones(4, 32)), Linear(quantise(torch.ones(4, 32), "Q4_1"))
    of = {"k": plain, "v": narrow, "q": narrow}
    widen_mixed(of, ("k", "v"), torch.bfloat16)
    assert isinstance(of["v"].weight, torch.Tensor) and of["v"].weight.dtype == torch.bfloat16
    of = {"gate": narrow, "up": narrow}
    widen_mixed(of, ("gate", "up"), torch.float32)
    assert all(isinstance(part.weight, Blocks) for part in of.values())


def logprob(llm: LLM, native: bool) -> torch.Tensor:
    """Log-probabilities [V] after a prompt that is longer than a native pass, and one token more."""
    assert isinstance(llm.engine.runner, NativeRunner)
    if not native:
        llm.engine.runner = llm.engine.runner.plain
    (out,) = llm.generate([[7, 8, 9, 10] * 6], LONG)
    assert out.logprobs is not None
    return torch.tensor([out.logprobs[1][i] for i in range(300)])


def test_int8_is_near_the_model_in_both_runners(made):
    exact, native, plain = (
        logprob(made(weights=kind), runs) for kind, runs in (("auto", True), ("int8", True), ("int8", False))
    )
    for found in (native, plain):
        # nats, over a random model's whole vocabulary
        assert 0 < float((exact.exp() * (exact - found)).sum()) < 0.05


@pytest.mark.parametrize("activations", ["auto", "exact", "int8"])
@pytest.mark.parametrize("weights", ["int4", "int4-head"])
def test_int4_is_near_the_model_in_both_runners(made, weights, activations):
    found = (logprob(made(weights=weights, activations=activations), runs) for runs in (True, False))
    exact, native, plain = logprob(made(), True), *found
    assert 0 < float((exact.exp() * (exact - native)).sum()) < 1, "of a random model, whose weights fill their range"
    apart = float((plain.exp() * (plain - native)).sum())
    assert abs(apart) < (1e-5 if activations == "exact" else 0.05)


@pytest.mark.parametrize(("pack", "kind"), [(int8, Int8 | Blocks), (int4, Blocks), (int4_head, Blocks)])
def test_a_narrow_spine_can_take_the_place_of_the_model(tiny_model, pack, kind):
    model = tiny_model("llama", tie_word_embeddings=True)
    spine = spine_of(model)
    packed = narrow_spine(spine, pack)
    assert packed.head is packed.embed and isinstance(packed.embed, kind)
    assert all(isinstance(m.weight, kind) for block in packed.layers for m in matrices(block).values())
    assert all(p.numel() for p in model.parameters()), "the model is as it was"
    before = sum(p.numel() for p in model.parameters())
    narrow_spine(spine, pack, release=True)
    assert sum(p.numel() for p in model.parameters()) < 0.02 * before, "norms are left"


def test_int8_by_name_keeps_one_copy(tiny_folder, tiny_plugin):
    llm = LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu", weights="int8")
    (out,) = llm.generate("the quick brown fox jumps over the lazy dog", SamplingParams(max_tokens=8, ignore_eos=True))
    assert len(out.token_ids) == 8 and math.isfinite(out.cost) and out.cost < 1
    left = sum(p.numel() for n, p in llm.model.named_parameters() if ".parts." not in n)
    assert left == sum(p.numel() for n, p in llm.model.named_parameters() if "norm" in n and ".parts." not in n)
    with pytest.raises(ValueError, match="weights must be one of auto, int8, int4, int4-head, file, not 'int3'"):
        LLM(str(tiny_folder), None, weights="int3")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"weights='file' runs a GGUF file from its own blocks, and .* is none"):
        LLM(str(tiny_folder), None, device="cpu", weights="file")
    with pytest.raises(ValueError, match="needs the GGUF file: open the model by its name"):
        LLM.of(llm.model, llm.tokenizer, weights="file")
