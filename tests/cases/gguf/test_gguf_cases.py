"""GGUF files that people have: computed as the file says, or refused by the name of what is not supported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, RopeScalingType
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from depthdial import load
from depthdial.engine.llm import LLM

Write = Callable[..., Path]
IDS = torch.arange(60).remainder(250)[None]


def _opened(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load(str(path), plugin=None, dtype="float32", device="cpu")


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def _like(model: PreTrainedModel, **config: Any) -> torch.Tensor:
    """Logits of Hugging Face's own model with these weights and another configuration."""
    settings = {**model.config.to_dict(), **config}
    other = AutoModelForCausalLM.from_config(type(model.config).from_dict(settings), dtype=torch.float32).eval()
    other.load_state_dict(model.state_dict())
    return _logits(other)


def _rope(model: PreTrainedModel, **more: Any) -> torch.Tensor:
    return _like(model, rope_parameters={"rope_theta": 10000.0, **more})


# ---------------------------------------------------------------- rope


def test_a_linear_scaling_is_hugging_faces(write: Write) -> None:
    def say(out: GGUFWriter) -> None:
        out.add_rope_scaling_type(RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(4.0)

    model, _ = _opened(write(say=say))
    plain, _ = _opened(write("plain.gguf"))
    assert torch.equal(_logits(model), _rope(plain, rope_type="linear", factor=4.0))
    assert (_logits(model) - _logits(plain)).abs().max() > 0.1


@pytest.mark.parametrize("key", ["llama.rope.scale_linear", "llama.rope.scaling.factor"])
def test_a_factor_without_a_type_is_linear(write: Write, key: str) -> None:
    model, _ = _opened(write(say=lambda out: out.add_float32(key, 2.0)))
    plain, _ = _opened(write("plain.gguf"))
    assert torch.equal(_logits(model), _rope(plain, rope_type="linear", factor=2.0))


def test_no_scaling_is_none_whatever_its_factor(write: Write) -> None:
    def say(out: GGUFWriter) -> None:
        out.add_rope_scaling_type(RopeScalingType.NONE)
        out.add_rope_scaling_factor(4.0)

    assert torch.equal(_logits(_opened(write(say=say))[0]), _logits(_opened(write("plain.gguf"))[0]))


def test_yarn_is_hugging_faces(write: Write) -> None:
    def say(out: GGUFWriter) -> None:
        out.add_rope_scaling_type(RopeScalingType.YARN)
        out.add_rope_scaling_factor(4.0)
        out.add_rope_scaling_orig_ctx_len(32)
        out.add_float32("llama.rope.scaling.yarn_beta_fast", 16.0)

    model, _ = _opened(write(say=say))
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    plain, _ = _opened(write("plain.gguf"))
    assert torch.equal(_logits(model), _rope(plain, **yarn, beta_fast=16.0, beta_slow=1.0))


def test_longrope_is_refused_by_its_name(write: Write) -> None:
    path = write(say=lambda out: out.add_rope_scaling_type(RopeScalingType.LONGROPE))
    with pytest.raises(ValueError, match=r"llama\.rope\.scaling\.type 'longrope'"):
        _opened(path)


def test_factors_of_each_pair_slow_it(write: Write) -> None:
    factors = np.array([1, 2, 4, 8], np.float32)
    model, tokenizer = _opened(write(change=lambda t: t.update({"rope_freqs.weight": factors})))
    plain, _ = _opened(write("plain.gguf"))
    every = {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0}
    every |= {name: factors.tolist() for name in ("short_factor", "long_factor")}
    assert torch.equal(_logits(model), _rope(plain, **every, original_max_position_embeddings=128))
    assert LLM.of(model, tokenizer).generate([[1, 2, 3]])[0].token_ids  # and the engine runs it


def test_the_factors_of_llama_3_are_its_rope(write: Write) -> None:
    waves = 2 * np.pi * 10000.0 ** (np.arange(0, 8, 2) / 8)
    slope = np.clip((8192 / waves - 1.0) / 3.0, 0, 1)
    factors = (1 / ((1 - slope) / 32 + slope)).astype(np.float32)
    assert factors[0] == 1 and factors[-1] > 1
    factors[-1] = 32
    model, _ = _opened(write(change=lambda t: t.update({"rope_freqs.weight": factors})))
    assert model.config.rope_parameters["rope_type"] in ("llama3", "longrope")
    angles = model.model.rotary_emb.inv_freq
    assert torch.allclose(angles * torch.tensor(factors), 10000.0 ** -(torch.arange(0, 8, 2) / 8), rtol=1e-5)


@pytest.mark.parametrize("factors", [[1, 2, 4], [1, 2, 0, 8], [1, 2, -4, 8]])
def test_factors_that_are_none_are_damage(write: Write, factors: list[float]) -> None:
    path = write(change=lambda t: t.update({"rope_freqs.weight": np.array(factors, np.float32)}))
    with pytest.raises(ValueError, match=r"rope_freqs\.weight"):
        _opened(path)


# ---------------------------------------------------------------- tensors


def test_biases_of_attention_are_added(write: Write, biases: Callable[..., None]) -> None:
    wanted: dict[str, np.ndarray] = {}

    def change(tensors: dict[str, np.ndarray]) -> None:
        biases(tensors)
        wanted.update(tensors)

    model, _ = _opened(write(change=change))
    plain, _ = _opened(write("plain.gguf"))
    assert model.config.attention_bias
    for i in range(2):
        for name in "qkv":
            found = model.get_parameter(f"model.layers.{i}.self_attn.{name}_proj.bias")
            assert torch.equal(found, torch.tensor(wanted[f"blk.{i}.attn_{name}.bias"]))
    assert not model.get_parameter("model.layers.0.self_attn.o_proj.bias").any()
    assert (_logits(model) - _logits(plain)).abs().max() > 0.1


def test_biases_of_the_mlp_are_added(write: Write) -> None:
    one = np.ones(32, np.float32)
    model, _ = _opened(write(change=lambda t: t.update({"blk.1.ffn_down.bias": one})))
    assert bool((model.get_parameter("model.layers.1.mlp.down_proj.bias") == 1).all())
    assert not model.get_parameter("model.layers.0.mlp.down_proj.bias").any()


def test_a_tensor_of_nobody_is_named_each_time(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(change=lambda t: t.update({"blk.0.ffn_gate_inp.weight": np.ones((2, 32), np.float32)}))
    for _ in range(2):
        _opened(path)
        assert "blk.0.ffn_gate_inp.weight" in capfd.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["blk.0.attn_q_norm.weight", "blk.1.post_attention_norm.weight", "blk.0.attn_norm.bias", "output.bias",
     "blk.0.attn_sinks.weight", "rope_factors_long.weight", "blk.2.attn_q.weight", "blk.0.ffn_up_exps.weight"],
)  # fmt: skip
def test_a_tensor_of_another_computation_is_refused_by_its_name(write: Write, name: str) -> None:
    path = write(change=lambda t: t.update({name: np.ones(32, np.float32)}))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        _opened(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", "token_embd.weight", "output_norm.weight"])
def test_a_tensor_that_is_not_finite_is_named(write: Write, name: str, value: float) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[3] = value

    with pytest.raises(ValueError, match=rf"{name.replace('.', r'[.]')} is not finite"):
        _opened(write(change=change))


def test_integers_are_no_weights(write: Write) -> None:
    path = write(change=lambda t: t.update({"blk.0.ffn_up.weight": np.ones((64, 32), np.int32)}))
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_up\.weight.*I32"):
        _opened(path)


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("name", "value"),
    [("attention.scale", 0.5), ("logit_scale", 2.0), ("attention.sliding_window", 8), ("expert_count", 4),
     ("residual_scale", 0.3), ("attention.causal", False), ("rope.scaling.attn_factor", 1.5), ("pooling_type", 1),
     ("attn_logit_softcapping", 30.0), ("final_logit_softcapping", 30.0), ("attention.value_length", 4),
     ("attention.clamp_kqv", 1.0), ("rope.scaling.yarn_ext_factor", -0.5)],
)  # fmt: skip
def test_a_hyper_parameter_that_is_not_computed_is_refused_by_its_name(write: Write, name: str, value: Any) -> None:
    def say(out: GGUFWriter) -> None:
        kind = {bool: out.add_bool, int: out.add_uint32, float: out.add_float32}[type(value)]
        kind(f"llama.{name}", value)

    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        _opened(write(say=say))


def test_what_changes_nothing_is_taken_in_silence(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    def say(out: GGUFWriter) -> None:
        out.add_uint32("llama.expert_count", 0)
        out.add_float32("llama.attention.scale", 8**-0.5)
        out.add_uint32("llama.attention.sliding_window", 4096)
        out.add_tensor_data_layout("Meta AI original pth")
        out.add_uint32("tokenizer.ggml.fim_pre_token_id", 3)
        out.add_string("quantize.imatrix.file", "some.dat")
        out.add_description("of nothing")

    model, _ = _opened(write(say=say))
    assert capfd.readouterr().err.count("\n") == 1
    assert torch.equal(_logits(model), _logits(_opened(write("plain.gguf"))[0]))


@pytest.mark.parametrize("key", ["tokenizer.ggml.newer_thing", "llama.newer_thing", "tokenizer.chat_template.tool_use"])
def test_a_key_that_nobody_knows_is_named(write: Write, key: str, capfd: pytest.CaptureFixture[str]) -> None:
    _opened(write(say=lambda out: out.add_string(key, "x")))
    assert key in capfd.readouterr().err
