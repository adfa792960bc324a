"""Which base is which: a hash that sees what matters and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from depthdial.methods import FlexiDepth, Static
from depthdial.models.convert import convert
from depthdial.models.families import FAMILIES
from depthdial.models.fingerprint import cast_from, config_hash, fingerprint, weights_hash

OF_BEFORE = "0ac0ae390cbdc4d42c591d0dd6187a25ab1a3338df2ed96e350da7fae5d9c901"
"""Of the tiny Llama's configuration, as version 0.1 had it."""


@pytest.fixture
def llama(tiny_model: Callable) -> PreTrainedModel:
    return tiny_model("llama")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [FlexiDepth(), Static(order=(1,))], ids=["flexidepth", "static"])
def test_a_converted_model_is_the_same_base(tiny_model: Callable, adapted: Callable, family: str, method):
    base, model = tiny_model(family), tiny_model(family)
    before = fingerprint(model)
    assert before == fingerprint(base) and before.model_type == family
    adapted(model, method)
    assert fingerprint(model) == before


def test_weights_are_hashed_as_bf16(llama: PreTrainedModel):
    before = weights_hash(llama)
    for tensor in llama.parameters():
        tensor.data = tensor.data.bfloat16().float()
    assert weights_hash(llama) == before, "a model de-quantised once and loaded in fp32 or bf16 is one base"
    assert weights_hash(llama.bfloat16()) == before


def test_any_weight_counts(llama: PreTrainedModel):
    seen = {weights_hash(llama)}
    for name, tensor in llama.named_parameters():
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(weights_hash(llama))
        assert len(seen) == len({*seen}), name
    assert len(seen) == 1 + len(dict(llama.named_parameters()))


def test_swapped_weights_are_other_weights(llama: PreTrainedModel):
    layers: Any = llama.get_decoder().layers
    before = weights_hash(llama)
    layers[0], layers[1] = layers[1], layers[0]
    assert weights_hash(llama) != before


def test_parts_do_not_count(tiny_model: Callable):
    model = convert(tiny_model("llama"), FlexiDepth())
    before = fingerprint(model)
    for name, tensor in model.named_parameters():
        if ".parts." in name:
            tensor.data += 1
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 48}, {"intermediate_size": 80}, {"num_attention_heads": 8}, {"num_key_value_heads": 4},
        {"rms_norm_eps": 1e-3}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"vocab_size": 301}, {"num_hidden_layers": 5}, {"hidden_act": "gelu"}, {"tie_word_embeddings": True},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_what_shapes_the_computation_counts(tiny_model: Callable, change: dict):
    plain = tiny_model("llama").config
    other = type(plain)(**{**plain.to_dict(), **change})
    assert config_hash(other) != config_hash(plain)


def test_what_does_not_shape_it_does_not_count(tiny_model: Callable):
    plain = tiny_model("llama").config
    others = {"dtype": "bfloat16", "use_cache": False, "max_position_embeddings": 64, "_name_or_path": "elsewhere"}
    assert config_hash(type(plain)(**{**plain.to_dict(), **others, "bos_token_id": 7})) == config_hash(plain)
    digits = type(plain)(**{**plain.to_dict(), "rms_norm_eps": 9.99999997e-07})
    assert config_hash(digits) == config_hash(plain), "a GGUF file's number is the config's"


def test_unknown_families_have_none():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="'gpt2' cannot be converted"):
        fingerprint(model)


def test_a_cast_that_is_noted_leaves_the_base_what_it_was(llama: PreTrainedModel):
    with torch.no_grad():
        next(llama.parameters()).view(-1)[0] = 1e-9  # nothing in float16
    before = weights_hash(llama)
    llama.half()
    assert weights_hash(llama) != before
    cast_from(llama, before)
    assert weights_hash(llama) == before
    with torch.no_grad():
        next(llama.parameters()).view(-1)[1] += 1
    assert weights_hash(llama) != before, "but a change of its weights is one"


def test_what_some_types_alone_have_counts_where_it_is_set(tiny_model: Callable):
    granite = tiny_model("granite").config
    before = config_hash(granite)
    granite.residual_multiplier = 0.7
    assert config_hash(granite) != before
    llama = tiny_model("llama").config
    assert config_hash(llama) == OF_BEFORE, "hashes of before stay"
