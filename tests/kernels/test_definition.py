import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels import definition

from depthdial.core.layers import Adapter, Router
from depthdial.kernels.pack import int8_pack
from depthdial.kernels.tensors import PAGE, Act, AdapterTensors, Branch, Dense, Norm, RouterTensors
from depthdial.models.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_pass_is_the_hugging_face_model_chunk_by_chunk(family, tiny_model, tensors_of, batch_for):
    model = tiny_model(family)
    tensors = tensors_of(model)
    ids = torch.randint(0, 300, (90,), generator=torch.Generator().manual_seed(1))
    batch = batch_for(tensors)
    cache = batch.cache()
    chunks = []
    for begin, end in ((0, 70), (70, 71), (71, 90)):
        inputs = batch.inputs([(2, p) for p in range(begin, end)])
        chunks.append(definition.forward_pass(tensors, inputs._replace(ids=ids[begin:end]), cache).logits)
    torch.testing.assert_close(torch.cat(chunks), model(ids[None]).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["norm_tanh", "tanh_norm"])
@torch.no_grad()
def test_router_and_adapter_are_those_of_core(order):
    torch.manual_seed(0)
    router, adapter, x = Router(32, 4, 1e-6, order, start=0.3), Adapter(32, 12), torch.randn(5, 32)
    torch.nn.init.normal_(adapter.down.weight)
    norm, tanh = Norm(router.norm.weight, 1e-6), Act("tanh")
    between = (norm, tanh) if order == "norm_tanh" else (tanh, norm)
    last = Dense(router.head.weight @ router.dec.weight, router.bias[None])
    tensors = RouterTensors((Dense(router.enc.weight), *between, last))
    torch.testing.assert_close(definition.router_number(x, tensors), router(x[None])[0], rtol=1e-5, atol=1e-5)
    parts = AdapterTensors(adapter.gate.weight, adapter.up.weight, adapter.down.weight)
    torch.testing.assert_close(definition.adapter(x, parts), adapter(x))


@torch.no_grad()
def test_soft_weights_and_untouched_rows(tiny_model, tensors_of, routed):
    branch = routed(tensors_of(tiny_model()), soft=True).layers[2].branch
    z, offsets = torch.randn(6, 32), torch.tensor([0.0, 1.0, -1.0, math.inf, 0.5, 0.0])
    number = definition.router_number(z, branch.router)
    alone = definition.choose(branch, offsets, number)
    assert torch.equal(alone.keep, number + offsets > branch.router.cut)
    assert alone.keep[3] and alone.score[3] == 1 and alone.run[3] == 1
    torch.testing.assert_close(alone.skip, 1 - alone.score)


@torch.no_grad()
def test_a_table_decides_but_for_the_untouched_base():
    offsets = torch.tensor([0.0, 0.0, math.inf])
    decided = definition.choose(Branch("table"), offsets, given=torch.tensor([1, 0, 0], dtype=torch.uint8))
    assert decided.keep.tolist() == [True, False, True] and decided.score.tolist() == [1, 0, 1]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 200), st.integers(0, 2**31))
def test_int8_errs_by_no_more_than_its_steps(tokens, width, seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(tokens, width), torch.randn(9, width)
    packed = int8_pack(weight)
    assert packed.values.abs().max() <= 127
    kept = packed.values * packed.scale[:, None]
    assert ((kept - weight).abs() <= packed.scale[:, None] * 0.501).all()
    values, scale = definition.int8_quantise(x)
    error = (values * scale[..., None]).flatten(1)[:, :width] - x
    assert (error.abs() <= scale.repeat_interleave(definition.BLOCK, 1)[:, :width] * 0.501).all()
    bound = (error.abs() @ kept.T.abs()) + x.abs() @ (kept - weight).T.abs()
    assert ((definition.int8_linear(x, packed) - F.linear(x, weight)).abs() <= bound + 1e-4).all()


def test_zeros_stay_zeros_in_int8():
    packed = int8_pack(torch.zeros(3, 5))
    assert torch.equal(definition.int8_linear(torch.zeros(2, 5), packed), torch.zeros(2, 3))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3 * PAGE - 1), st.one_of(st.none(), st.integers(1, 200)))
def test_attention_over_pages_is_attention_over_rows(position, window):
    torch.manual_seed(position)
    k_cache, v_cache = torch.randn(2, 7, 2, PAGE, 8)
    table = torch.tensor([[0, 0, 0], [5, 1, 6]], dtype=torch.int32)
    q = torch.randn(1, 4, 8)
    out = definition.attend(q, k_cache, v_cache, table, torch.tensor([1]), torch.tensor([position]), 0.3, window)
    k, v = (cache[[5, 1, 6]].transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for cache in (k_cache, v_cache))
    seen = torch.arange(3 * PAGE) <= position
    if window is not None:
        seen &= torch.arange(3 * PAGE) > position - window
    expected = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=seen[None], scale=0.3, enable_gqa=True)
    torch.testing.assert_close(out, expected.flatten(1), rtol=1e-4, atol=1e-5)
