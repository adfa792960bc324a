"""Large native passes against the definition, and that they do no more work. Without AMX its tiles are emulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels import definition
from tests.kernels.cpu.programs import wide_model
from tests.laws.cover import NATIVE
from torch import Tensor

from depthdial.kernels.cpu.build import EMULATED, all_isas, supported
from depthdial.kernels.cpu.native import Counters, NativeModel
from depthdial.kernels.pack import packed
from depthdial.kernels.passing import PagedCache, PassTokens
from depthdial.kernels.tensors import Branch, Linear, ModelTensors

TILES = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 32}
"""Sizes that are whole tiles."""
SPANS = ((0, 100), (5, 6), (40, 41), (70, 130))
"""Places of the tokens of each sequence: a prompt from its beginning, two rows that decode, a prompt in its middle."""


@pytest.fixture(scope="module")
def made_native() -> Callable[[ModelTensors], NativeModel]:
    """`made_native(model)`: on tiles, real or emulated."""
    isa = "amx" if "amx" in supported() else EMULATED
    if isa not in all_isas():
        pytest.skip("this processor has neither AMX nor the AVX-512 that emulates it")
    return lambda model: NativeModel(model, isa=isa)


@pytest.fixture(scope="module")
def model(tiny_model: Callable, tensors_of: Callable, routed: Callable) -> Callable[..., ModelTensors]:
    """`model(family, **sizes)`: bf16, with routers and adapters; `amx` alone runs it."""

    def make(family: str = "llama", soft: bool = False, order: str = "norm_tanh", **sizes: Any) -> ModelTensors:
        return routed(tensors_of(tiny_model(family, **(TILES | sizes)).bfloat16()), soft=soft, order=order)

    return make


def run(native: NativeModel, inputs: PassTokens, cache: PagedCache, batch: Any) -> tuple[Any, Counters]:
    """Logits of all tokens, decisions and scores."""
    out = batch.output(len(inputs.ids))
    return out, native.prefill(inputs, cache, out, torch.arange(len(inputs.ids), dtype=torch.int32))


def inputs_of(batch: Any, spans: Sequence[tuple[int, int]], offsets: Sequence[float]) -> PassTokens:
    inputs = batch.inputs([(i, place) for i, span in enumerate(spans) for place in range(*span)])
    every = [torch.full((b - a,), o) for (a, b), o in zip(spans, offsets, strict=True)]
    return inputs._replace(offsets=torch.cat(every))


def assert_close(model: ModelTensors, native: NativeModel, batch: Any, inputs: PassTokens) -> Counters:
    """Measured from the same model in fp32 we are no farther than the definition in bf16 is. Both get our decisions: a
    logit close to its cut may fall to the other side in another order of sums. They follow from our scores, which are
    near the definition's."""
    ours = batch.cache()
    out, counters = run(native, inputs, ours, batch)
    keep, score = out.keep, out.score
    theirs, exact = (_told(model, batch, inputs, dtype, keep) for dtype in (torch.bfloat16, torch.float32))
    for name, mine in {"k": ours.k, "v": ours.v, "logits": out.logits}.items():
        unit, error = exact[name].norm(), (mine - exact[name]).norm()
        assert error < 1.3 * (theirs[name] - exact[name]).norm() + 1e-3 * unit and error < 0.1 * unit, name
    expected = definition.forward_pass(wide_model(model, torch.bfloat16), inputs, batch.cache())
    assert (expected.keep == keep).float().mean() > 0.97 and (expected.score - score).abs().mean() < 0.02
    for layer, kept, scores in zip(model.layers, keep, score, strict=True):
        router = layer.branch.router
        cut = 0.5 if router is None else torch.tensor(router.cut).sigmoid()
        assert torch.equal(kept.bool(), scores > cut)
    assert counters.rows_run == keep.sum() and counters.layers_run == keep.any(1).sum()
    return counters


def _told(model: ModelTensors, batch: Any, inputs: PassTokens, dtype: torch.dtype, keep: Tensor) -> dict[str, Tensor]:
    """The definition's logits and caches in a dtype, every decision given; all fp32."""
    wide = wide_model(model, dtype)
    wide = wide._replace(layers=tuple(layer._replace(branch=Branch("table")) for layer in wide.layers))
    cache = batch.cache()
    cache = cache._replace(k=cache.k.to(dtype), v=cache.v.to(dtype))
    logits = definition.forward_pass(wide, inputs._replace(given=keep), cache).logits
    return {"logits": logits, "k": cache.k.float(), "v": cache.v.float()}


ORDERS = {"qwen2": "tanh_norm", "qwen3": "linear"}
"""Of routers, by family; others: norm_tanh."""


TILED = (
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "granite", "seed_oss", "smollm3", "gemma", "gemma3_text"),
    *("cwm", "iquestcoder", "internlm3"),
)
"""Families that tiles run; the prompts of others are read in small passes."""


@pytest.mark.parametrize("family", [family for family in NATIVE if family not in TILED])
def test_what_tiles_do_not_know_they_do_not_run(family: str, model, made_native):
    assert not made_native(model(family)).prefills


@pytest.mark.parametrize("family", TILED)
@torch.no_grad()
def test_every_family_within_the_rounding_of_bf16(family: str, model, made_native, batch_for):
    made = model(family, order=ORDERS.get(family, "norm_tanh"))
    batch, native = batch_for(made), made_native(made)
    counters = assert_close(made, native, batch, inputs_of(batch, SPANS, (0.0, 0.0, -0.5, math.inf)))
    kept = counters.rows_run / (len(made.layers) * sum(b - a for a, b in SPANS))
    assert 0.3 < kept < 0.97, "tokens differ in what they run"


@torch.no_grad()
def test_long_contexts_and_wide_heads(model, made_native, batch_for):
    made = model("llama", head_dim=128)
    batch, native = batch_for(made, sequences=2, pages=20), made_native(made)
    assert_close(made, native, batch, inputs_of(batch, ((500, 530), (1100, 1260)), (0.0, 0.2)))


@torch.no_grad()
def test_int8_weights_with_activations_as_they_are(model, made_native, batch_for):
    made = packed(model("llama"))
    batch, native = batch_for(made), made_native(made)
    assert_close(made, native, batch, inputs_of(batch, SPANS, (0.0, 0.0, 0.0, 0.0)))


@torch.no_grad()
def test_soft_weights_are_those_of_the_scores(model, made_native, batch_for):
    made = model("llama", soft=True)
    batch, native = batch_for(made), made_native(made)
    inputs = inputs_of(batch, SPANS, (0.0, 0.0, 0.3, 0.0))
    out, _ = run(native, inputs, batch.cache(), batch)
    expected, hard = (definition.forward_pass(m, inputs, batch.cache()) for m in (made, model("llama")))
    same = (out.keep == expected.keep).all(0)
    assert same.float().mean() > 0.9
    error, other = ((found.logits - out.logits)[same].norm() for found in (expected, hard))
    assert error < 0.05 * expected.logits[same].norm() and error < 0.2 * other


spans = st.tuples(st.integers(0, 120), st.integers(1, 70)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=15, deadline=None)
@given(st.lists(spans, min_size=2, max_size=4), st.sampled_from([math.inf, 0.0, -0.7]), st.sampled_from([None, 24]))
@torch.no_grad()
def test_a_token_comes_out_the_same_whoever_shares_the_pass(model, made_native, batch_for, parts, offset, window):
    made = model("llama")
    made = made._replace(layers=tuple(layer._replace(window=window) for layer in made.layers))
    batch, native = batch_for(made), made_native(made)
    inputs, together = inputs_of(batch, parts, [offset] * len(parts)), batch.cache()
    out, _ = run(native, inputs, together, batch)
    at, apart = 0, batch.cache()
    for begin, end in parts:
        mine = PassTokens(*(part[at : at + end - begin].contiguous() for part in inputs[:4]))
        alone, _ = run(native, mine, apart, batch)
        assert torch.equal(alone.logits, out.logits[at : at + end - begin])
        at += end - begin
    for cache, other in zip(together[:2], apart[:2], strict=True):
        assert torch.equal(cache, other)


@torch.no_grad()
def test_threads_share_the_tokens_and_change_nothing(model, made_native, batch_for):
    made = model("llama")
    batch, native = batch_for(made), made_native(made)
    inputs, before, found = inputs_of(batch, SPANS, (0.0,) * 4), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            found.append(run(native, inputs, batch.cache(), batch))
    finally:
        torch.set_num_threads(before)
    for out, counters in found[1:]:
        assert torch.equal(out.logits, found[0][0].logits)
        assert counters[:3] == found[0][1][:3]


@torch.no_grad()
def test_a_layer_that_all_tokens_skip_is_not_read(model, made_native, batch_for):
    made = model("llama")
    batch, native = batch_for(made), made_native(made)
    read = {}
    for offset in (math.inf, -1e9):
        out, counters = run(native, inputs_of(batch, SPANS, (offset,) * 4), batch.cache(), batch)
        assert counters.layers_run == (native.depth if offset == math.inf else 2)
        # what a skipped layer would have read is not there: nothing that it holds can reach the output
        read[offset] = counters.weight_bytes
        assert torch.isfinite(out.logits).all()
    layer = made.layers[-1]
    whole = sum(2 * getattr(layer, name).weight.numel() for name in ("q", "o", "gate", "up", "down"))
    assert layer.branch.router is not None and layer.adapter is not None
    parts = sum(2 * part.numel() for part in (layer.branch.router.ops[0].weight, *layer.adapter))
    assert read[math.inf] - read[-1e9] == (native.depth - 2) * (whole - parts)


@torch.no_grad()
def test_skipped_layers_may_hold_anything(model, made_native, batch_for):
    """NaN in weights that no token needs never shows, so they are not multiplied and masked."""
    made = model("llama")
    spoilt = made.layers[-1]
    bad = {
        name: Linear(torch.full_like(getattr(spoilt, name).weight, float("nan"))) for name in ("q", "o", "gate", "down")
    }
    made = made._replace(layers=(*made.layers[:-1], spoilt._replace(**bad)))
    batch, native = batch_for(made), made_native(made)
    out, _ = run(native, inputs_of(batch, SPANS, (-1e9,) * 4), batch.cache(), batch)
    assert torch.isfinite(out.logits).all()


@torch.no_grad()
def test_what_is_not_whole_tiles_of_bf16_is_left_to_small_passes(tiny_model, tensors_of, made_native, batch_for):
    assert not made_native(tensors_of(tiny_model())).prefills  # fp32
    assert not made_native(tensors_of(tiny_model("llama", **(TILES | {"head_dim": 16})).bfloat16())).prefills
    made = tensors_of(tiny_model("llama", **TILES).bfloat16())
    assert NativeModel(made).prefills == ("amx" in supported())
    assert not any(NativeModel(made, isa=isa).prefills for isa in supported() if isa != "amx")
    batch, native = batch_for(made), made_native(made)
    inputs = inputs_of(batch, SPANS, (0.0,) * 4)
    with pytest.raises(ValueError, match="beyond the pages"):
        run(native, inputs._replace(positions=inputs.positions + 192), batch.cache(), batch)
    out = batch.output(len(inputs.ids))
    out = out._replace(logits=out.logits[:1])
    with pytest.raises(ValueError, match="not in the pass"):
        native.prefill(inputs, batch.cache(), out, torch.tensor([len(inputs.ids)]).int())
