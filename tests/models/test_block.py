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


def heads(x: Tensor, of: Linear, size: int, normed: Norm | None) -> Tensor:
    """[T, d] -> [heads, T, size]"""
    return norm(linear(x, of).unflatten(-1, (-1, size)), normed).transpose(0, 1)


def turn(x: Tensor, rope: Rope) -> Tensor:
    angle = torch.arange(x.shape[1])[:, None] * rope.inv_freq
    cos, sin = angle.cos() * rope.scaling, angle.sin() * rope.scaling
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(z: Tensor, block: LayerTensors, rope: Rope) -> Tensor:
    q = turn(heads(z, block.q, block.head_dim, block.q_norm), rope)
    k = turn(heads(z, block.k, block.head_dim, block.k_norm), rope)
    v = heads(z, block.v, block.head_dim, None)
    assert (q.shape[0], k.shape[0]) == (block.heads, block.kv_heads)
    group = block.heads // block.kv_heads
    scores = q @ k.repeat_interleave(group, 0).mT * block.scale
    ago = torch.arange(len(z))[:, None] - torch.arange(len(z))
    seen = (ago >= 0) & (ago < (block.window or math.inf))
    weight = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return linear((weight @ v.repeat_interleave(group, 0)).transpose(0, 1).flatten(1), block.o)


def forward(spine: ModelTensors, ids: Tensor) -> Tensor:
    """ids: [T] -> logits [T, V]"""
    assert isinstance(spine.embed, Tensor) and isinstance(spine.head, Tensor)
    x = spine.embed[ids] * spine.embed_scale
    for block in spine.layers:
        x = x + norm(attend(norm(x, block.before_attn), block, spine.ropes[block.rope]), block.after_attn)
        u = norm(x, block.before_mlp)
        opened = linear(u, block.gate)
        opened = F.silu(opened) if block.activation == "silu" else F.gelu(opened, approximate="tanh")
        x = x + norm(linear(opened * linear(u, block.up), block.down), block.after_mlp)
    logits = F.linear(norm(x, spine.norm), spine.head)
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
    own = {id(p) for name, p in model.named_parameters() if ".parts." not in name}
    weights = {
        id(part.weight) for block in spine.layers for part in block._asdict().values() if isinstance(part, Linear)
    }
    assert weights < own and {id(spine.embed), id(spine.head)} < own, "nothing is copied"


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
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "type 'dynamic'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "later tokens"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(tiny_model: Callable, family: str, config: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        spine_of(tiny_model(family, **config))
