"""Int8 weights: near the originals, the same in the native and the torch runner, and in their place when asked."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.native import NativeRunner
from depthdial.engine.weights import int8_spine, look_up, matrices, multiply, size_of
from depthdial.kernels.pack import int8_pack
from depthdial.kernels.tensors import Int8
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


def test_a_spine_in_int8_can_take_the_place_of_the_model(tiny_model):
    model = tiny_model("llama", tie_word_embeddings=True)
    spine = spine_of(model)
    packed = int8_spine(spine)
    assert packed.head is packed.embed and isinstance(packed.embed, Int8)
    assert all(isinstance(m.weight, Int8) for block in packed.layers for m in matrices(block).values())
    assert all(p.numel() for p in model.parameters()), "the model is as it was"
    before = sum(p.numel() for p in model.parameters())
    int8_spine(spine, release=True)
    assert sum(p.numel() for p in model.parameters()) < 0.02 * before, "norms are left"


def test_int8_by_name_keeps_one_copy(tiny_folder, tiny_plugin):
    llm = LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu", weights="int8")
    (out,) = llm.generate("the quick brown fox jumps over the lazy dog", SamplingParams(max_tokens=8, ignore_eos=True))
    assert len(out.token_ids) == 8 and math.isfinite(out.cost) and out.cost < 1
    left = sum(p.numel() for n, p in llm.model.named_parameters() if ".parts." not in n)
    assert left == sum(p.numel() for n, p in llm.model.named_parameters() if "norm" in n and ".parts." not in n)
    with pytest.raises(ValueError, match="weights must be 'auto' or 'int8'"):
        LLM(str(tiny_folder), None, weights="int4")  # pyright: ignore[reportArgumentType]
