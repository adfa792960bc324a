"""A plain forward written over the spine alone gives Hugging Face's logits, for every family, converted or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.kernels.tensors import LayerTensors, Linear, ModelTensors, Norm, Rope
from depthdial.methods import Recursive
from depthdial.models.block import spine_of
from depthdial.models.families import FAMILIES

IDS = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(0))  # longer than the windows
each_family = pytest.mark.parametrize("family", FAMILIES)


def linear(x: Tensor, of: Linear) -> Tensor:
    assert isinstance(of.weight, Tensor)
    return F.linear(x, of.weight, of.bias)


def norm(x: Tensor, of: Norm | None) -> Tensor:
    if of is None:
        return x
    scale = of.weight + 1 if of.plus_one else of.weight
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + of.eps) * scale


def heads(x: Tensor, of: Linear, block: LayerTensors, normed: Norm | None, rope: Rope | None) -> Tensor:
    """[T, d] -> [heads, T, size]"""
    x = linear(x, of)
    if normed is not None and normed.weight.numel() == x.shape[-1] and not block.norms_turned:
        x, normed = norm(x, normed), None
    x = x.unflatten(-1, (-1, block.head_dim)).transpose(0, 1)
    if not block.norms_turned:
        x = norm(x, normed)
    if rope is not None:
        x = turn(x, rope, block.pairs == "neighbours")
    return norm(x, normed) if block.norms_turned else x


def turn(x: Tensor, rope: Rope, neighbours: bool) -> Tensor:
    angle = torch.arange(x.shape[1])[:, None] * rope.inv_freq
    cos, sin = angle.cos() * rope.scaling, angle.sin() * rope.scaling
    out, pairs = x.clone(), len(rope.inv_freq)
    for i in range(pairs):
        at, other = (2 * i, 2 * i + 1) if neighbours else (i, pairs + i)
        out[..., at] = x[..., at] * cos[:, i] - x[..., other] * sin[:, i]
        out[..., other] = x[..., other] * cos[:, i] + x[..., at] * sin[:, i]
    return out


def attend(z: Tensor, block: LayerTensors, spine: ModelTensors) -> Tensor:
    rope, places = spine.ropes[block.rope], torch.arange(len(z))
    q = heads(z, block.q, block, block.q_norm, rope)
    if spine.query_scale is not None:
        q = q * spine.query_scale(places)[:, None]
    k = heads(z, block.k, block, block.k_norm, rope)
    v = heads(z, block.v, block, None, None)
    assert (q.shape[0], k.shape[0]) == (block.heads, block.kv_heads)
    group = block.heads // block.kv_heads
    scores = q @ k.repeat_interleave(group, 0).mT * block.scale
    if block.softcap is not None:
        scores = (scores / block.softcap).tanh() * block.softcap
    ago = places[:, None] - places
    seen = (ago >= 0) & (ago < (block.window or math.inf))
    scores = scores.masked_fill(~seen, -math.inf)
    if block.sinks is not None:
        scores = torch.cat((scores, block.sinks[:, None, None].expand(-1, len(z), 1)), -1)
    weight = scores.softmax(-1)[..., : len(z)]
    return linear((weight @ v.repeat_interleave(group, 0)).transpose(0, 1).flatten(1), block.o)


def mlp(u: Tensor, block: LayerTensors) -> Tensor:
    if block.experts is not None:
        return block.experts.run(u)[0]
    opened = linear(u, block.gate)
    acts = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu2": lambda x: F.relu(x) ** 2}
    opened = acts[block.activation](opened)
    return linear(opened if block.up is None else opened * linear(u, block.up), block.down)


def forward(spine: ModelTensors, ids: Tensor) -> Tensor:
    """ids: [T] -> logits [T, V]"""
    assert isinstance(spine.embed, Tensor) and isinstance(spine.head, Tensor)
    x = spine.embed[ids] * spine.embed_scale
    for block in spine.layers:
        z = x if block.bare else norm(x, block.before_attn)
        x = x + norm(attend(z, block, spine), block.after_attn) * block.residual
        u = x if block.bare else norm(x, block.before_mlp)
        x = x + norm(mlp(u, block), block.after_mlp) * block.residual
    logits = F.linear(norm(x, spine.norm), spine.head) * spine.logit_scale
    return logits if spine.softcap is None else torch.tanh(logits / spine.softcap) * spine.softcap


@each_family
@pytest.mark.parametrize("converted", [False, True])
@torch.no_grad()
def test_the_spine_is_the_whole_model(tiny_model: Callable, adaptive: Callable, family: str, converted: bool):
    base = tiny_model(family)
    expected = base(IDS).logits[0]
    model = adaptive(base) if converted else base
    spine = spine_of(model)
    torch.testing.assert_close(forward(spine, IDS[0]), expected, rtol=1e-4, atol=1e-4)
    own = {place(p) for name, p in model.named_parameters() if ".parts." not in name}
    weights = {
        place(part.weight) for block in spine.layers for part in block._asdict().values() if isinstance(part, Linear)
    }
    assert weights < own and {place(spine.embed), place(spine.head)} < own, "nothing is copied"


def place(weight: Any) -> int:
    return weight.untyped_storage().data_ptr()


@torch.no_grad()
def test_a_visit_has_its_own_change_merged(tiny_model: Callable, adapted: Callable):
    model: Any = adapted(tiny_model("llama"), Recursive(loops=2, first=1, last=4, rank=4))
    spine = spine_of(model)
    assert len(spine.layers) == 9
    torch.testing.assert_close(forward(spine, IDS[0]), model(IDS).logits[0], rtol=1e-4, atol=1e-4)
    once, again = spine.layers[1], spine.layers[4]
    assert once.before_mlp.weight is again.before_mlp.weight, "norms are shared"
    assert not torch.equal(once.q.weight, again.q.weight)  # pyright: ignore
    plain = spine_of(adapted(tiny_model("llama"), Recursive(loops=2, first=1, last=4)))
    assert plain.layers[1].q.weight is plain.layers[4].q.weight, "without changes nothing is copied"


@torch.no_grad()
def test_what_some_models_of_a_family_have(tiny_model: Callable):
    """Biases where a Llama has them, a rope that is scaled, and logits that are capped."""
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 16, "rope_theta": 10000.0}
    llama = tiny_model("llama", attention_bias=True, mlp_bias=True, rope_parameters=scaled)
    for name, p in llama.named_parameters():
        if name.endswith("bias"):
            p.uniform_(-1, 1)
    gemma = tiny_model("gemma3_text", final_logit_softcapping=3.0)
    for model in (llama, gemma):
        torch.testing.assert_close(forward(spine_of(model), IDS[0]), model(IDS).logits[0], rtol=1e-4, atol=1e-4)


def test_windows_and_ropes_are_those_of_the_kind_of_layer(tiny_model: Callable):
    spine = spine_of(tiny_model("gemma3_text"))
    assert {block.rope: block.window for block in spine.layers} == {"sliding_attention": 8, "full_attention": None}
    assert not torch.equal(*(rope.inv_freq for rope in spine.ropes.values()))
    assert {block.window for block in spine_of(tiny_model("mistral")).layers} == {8}


@pytest.mark.parametrize(
    ("family", "config", "says"),
    [
        ("llama", {"hidden_act": "relu"}, "activation 'relu'"),
        ("olmoe", {"clip_qkv": 8.0}, "sets clip_qkv"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "later tokens"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(tiny_model: Callable, family: str, config: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        spine_of(tiny_model(family, **config))


@torch.no_grad()
@pytest.mark.parametrize("family", ["hunyuan_v1_dense", "olmo2", "qwen3"])
def test_one_head_of_keys_is_normed_like_many(tiny_model: Callable, family: str):
    model = tiny_model(family, num_key_value_heads=1)
    torch.testing.assert_close(forward(spine_of(model), IDS[0]), model(IDS).logits[0], rtol=1e-4, atol=1e-4)
