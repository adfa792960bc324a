"""Every architecture that is read from GGUF computes what the model did that was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

from depthdial.models.base import load_base
from depthdial.models.families import FAMILIES
from depthdial.models.gguf_model import ARCHITECTURES

COMMON = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
}
OF_ARCH = {
    "gemma3": {
        "pre_feedforward_layernorm": "ffn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
}
HALF = {"post_attention_layernorm": "ffn_norm"}
CASES = {
    "llama": ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
    "llama, tied": ("llama", {"head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16}),
}


def _write(path: Path, arch: str, model: PreTrainedModel) -> None:
    config: Any = model.config
    rope = config.rope_parameters
    out = GGUFWriter(path, arch)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    if arch != "qwen2":
        out.add_key_length(config.head_dim)
        out.add_value_length(config.head_dim)
    if arch == "gemma3":
        out.add_sliding_window(config.sliding_window)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base((rope["full_attention"] if arch == "gemma3" else rope)["rope_theta"])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "he", *(f"<unused{i}>" for i in range(config.vocab_size - len(alphabet) - 1))]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(tokens)
    out.add_token_types([1] * len(tokens))
    out.add_token_merges(["h e"])
    out.add_eos_token_id(2)
    names = {**COMMON, **OF_ARCH.get(arch, HALF)}
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.numpy()
        if arch == "gemma3" and "norm" in key:
            array = array + 1
        for heads, projection in ((config.num_attention_heads, "q_proj"), (config.num_key_value_heads, "k_proj")):
            if arch == "llama" and projection in key:
                array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        for theirs, its in names.items():
            key = key.replace(theirs, its)
        out.add_tensor(key, np.ascontiguousarray(array))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model_that_was_written(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))
    family, fields = CASES[case]
    written = tiny_model(family, **fields)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in written.named_parameters():
            if name.endswith("bias") or "norm" in name:  # which begin as all zeros or ones
                weight += 0.2 * torch.randn(weight.shape, generator=draw)
    _write(tmp_path / "m.gguf", case.partition(",")[0], written)
    read, _ = load_base(str(tmp_path / "m.gguf"), dtype="float32", device="cpu")
    ids = torch.arange(40)[None]  # longer than the window
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, written(ids).logits, atol=2e-5, rtol=1e-4)
    assert FAMILIES[family].model_type == read.config.model_type


def test_every_architecture_that_is_read_can_be_converted() -> None:
    assert {one.config.model_type for one in ARCHITECTURES.values()} <= set(FAMILIES)
    assert {case.partition(",")[0] for case in CASES} == set(ARCHITECTURES)
