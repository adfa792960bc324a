"""From the keys and tensors of a GGUF file to a Hugging Face model in fp32: four architectures, each computed whole.

A tensor that belongs to another computation than the one made here is refused by name; one that belongs to none is
named to the user and left out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from depthdial.models.foreign import shown
from depthdial.models.gguf_file import Contents, Damaged, Stored, Unsupported
from depthdial.models.gguf_keys import Keys
from depthdial.models.gguf_rope import rope_parameters

FACTORS = "rope_freqs.weight"
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_AROUND = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OTHERS = re.compile(
    r"(attn_(qkv|[qk]_norm|sub_norm|sinks|output_norm|rot_embd)|post_\w+_norm|ffn_(sub_norm|post_norm\w*|\w+_(exps|shexp|chexps))"
    r"|layer_output_\w+|token_embd_norm|position_embd|token_types|exp_probs_b|rope_factors_(long|short)|rope_freqs|ssm_\w+"
    r"|per_layer_\w+|altup_\w+|laurel_\w+|cls|cls_out|dense_\w+|output|output_norm|token_embd|attn_\w+|ffn_(up|gate|down|norm))"
    r"(\.(weight|bias|scale|input_scale))?"
)
"""Tensors by which some family computes something (without blk.N. before it)."""
_ATTENTION, _MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Architecture:
    """How one architecture of GGUF becomes a model."""

    config: type[PretrainedConfig]
    names: dict[str, str] = field(default_factory=lambda: _INSIDE)
    """The tensors of a layer."""
    biases: tuple[str, ...] = ()
    """Which of them may have a bias."""
    interleaved: bool = False
    """Are rope's pairs neighbours in the file (and halves of a head here)?"""
    norms_from_one: bool = False
    """Do the file's norms hold 1 + weight?"""
    factors: bool = False
    """May it hold factors for rope?"""


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(LlamaConfig, biases=(*_ATTENTION, *_MLP), interleaved=True, factors=True),
    "qwen2": Architecture(Qwen2Config, biases=_ATTENTION[:3]),
    "qwen3": Architecture(Qwen3Config, {**_INSIDE, **_HEAD_NORMS}, _ATTENTION),
    "gemma3": Architecture(Gemma3TextConfig, {**_INSIDE, **_HEAD_NORMS, **_AROUND}, _ATTENTION, norms_from_one=True),
}
GEMMA_27B = 62
"""Layers of the one Gemma 3 whose attention is scaled by another size than the head's."""


def architecture_of(keys: Keys) -> Architecture:
    """Raises Unsupported for one that cannot be read."""
    if keys.arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise Unsupported(f"models of architecture {shown(keys.arch)!r} cannot be read yet; known: {known}")
    return ARCHITECTURES[keys.arch]


def config_of(keys: Keys, contents: Contents, tokens: int) -> PretrainedConfig:
    """The configuration, without special tokens. tokens: of the vocabulary that the file lists.

    Raises Damaged or Unsupported, naming the key.
    """
    architecture, tensors = architecture_of(keys), contents.tensors
    hidden, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    head_dim = keys.whole("attention.key_length", max(hidden // heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        if (found := keys.whole(name, head_dim)) != head_dim:
            raise Unsupported(f"{keys.arch}.{name} is {found}, and heads of {head_dim} are all that is supported")
    context = keys.whole("context_length")
    if "token_embd.weight" not in tensors:
        raise Damaged("tensors are missing: token_embd.weight")
    vocabulary = tensors["token_embd.weight"].shape[0]
    keys.get(f"{keys.arch}.vocab_size")  # the embedding says it, and must be so large
    if tokens > vocabulary:
        raise Damaged(f"it lists {tokens} tokens, and its embedding has {vocabulary} rows")
    layers = keys.whole("block_count")
    if layers > len(tensors):
        raise Damaged(f"{keys.arch}.block_count is {layers}, and there are {len(tensors)} tensors")
    factors = tensors[FACTORS].read() if architecture.factors and FACTORS in tensors else None
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_parameters(keys, head_dim, context, factors),
        "tie_word_embeddings": "output.weight" not in tensors,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    if architecture.config is Qwen2Config:
        del fields["head_dim"]
        if head_dim * heads != hidden:
            raise Unsupported(f"{keys.arch}: heads of {head_dim} do not make up the width {hidden}")
    for name, those in (("attention_bias", _ATTENTION), ("mlp_bias", _MLP)):
        if hasattr(architecture.config, name):
            biased = re.compile(rf"blk\.\d+\.({'|'.join(those)})\.bias")
            fields[name] = any(biased.fullmatch(tensor) for tensor in tensors)
    _check_scale(keys, head_dim)
    fields |= _gemma(keys, fields) if architecture.config is Gemma3TextConfig else _unwindowed(keys, context)
    return architecture.config(**fields)


def _check_scale(keys: Keys, head_dim: int) -> None:
    scale = keys.get(f"{keys.arch}.attention.scale", 0)
    if scale and (isinstance(scale, bool | str | list) or not math.isclose(scale, head_dim**-0.5, rel_tol=1e-5)):
        raise Unsupported(f"{keys.arch}.attention.scale is {scale!r}; only 1 / sqrt({head_dim}) is supported")


def _unwindowed(keys: Keys, context: int) -> dict[str, Any]:
    window = keys.get(f"{keys.arch}.attention.sliding_window", 0)
    if window and not (isinstance(window, int) and window >= context):
        raise Unsupported(f"{keys.arch}.attention.sliding_window is {window}, which is not supported for {keys.arch}")
    return {}


def _gemma(keys: Keys, fields: dict[str, Any]) -> dict[str, Any]:
    """Its two kinds of layers, and what llama.cpp knows of it without a key."""
    layers, head_dim = fields["num_hidden_layers"], fields["head_dim"]
    pattern = keys.get("gemma3.attention.sliding_window_pattern", 6)
    if isinstance(pattern, list) and len(pattern) == layers:
        slides = [bool(one) for one in pattern]
    elif isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        slides = [bool((i + 1) % pattern) for i in range(layers)]
    else:
        raise Damaged(f"gemma3.attention.sliding_window_pattern is {shown(repr(pattern))}")
    local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10000.0)}
    cap = keys.get("gemma3.final_logit_softcapping", 0)
    wide = fields["hidden_size"] // fields["num_attention_heads"]
    return {
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
        "rope_parameters": {"sliding_attention": local, "full_attention": fields["rope_parameters"]},
        "query_pre_attn_scalar": wide if layers == GEMMA_27B else head_dim,
        "final_logit_softcapping": float(cap) if cap else None,
    }


def model_of(keys: Keys, contents: Contents, config: PretrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    """The model, fp32, and the names of the tensors that are no part of it.

    Raises Damaged for one that is missing, of another shape or not finite; Unsupported, by its name, for one that
    another computation needs.
    """
    architecture = architecture_of(keys)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wanted = dict(model.state_dict())
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    weights: dict[str, Tensor] = {}
    strange = []
    for name, stored in contents.tensors.items():
        ours = name_of(name, architecture)
        if ours is not None and ours in wanted:
            weights[ours] = _weight(name, stored, wanted[ours], config, architecture)
        elif not (name == FACTORS and architecture.factors):
            if _OTHERS.fullmatch(re.sub(r"^blk\.\d+\.", "", name)):
                raise Unsupported(f"tensor {shown(name)} is computed with in a way not known for {keys.arch}")
            strange.append(name)
    for name in wanted.keys() - weights.keys():
        if name.endswith("bias") and not isinstance(config, Qwen2Config):  # Hugging Face has all of them or none
            weights[name] = torch.zeros(wanted[name].shape)
    if missing := sorted(wanted.keys() - weights.keys()):
        raise Damaged(f"tensors are missing: {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}")
    model.load_state_dict(weights, assign=True, strict=not config.tie_word_embeddings)
    model.tie_weights()
    return model, strange


def name_of(name: str, architecture: Architecture) -> str | None:
    """A tensor's name in the model, or None."""
    stem, _, tail = name.rpartition(".")
    if tail == "weight" and stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.weight"
    if (found := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)) is None or found[2] not in architecture.names:
        return None
    if tail == "weight" or (tail == "bias" and found[2] in architecture.biases):
        return f"model.layers.{int(found[1])}.{architecture.names[found[2]]}.{tail}"
    return None


def _weight(name: str, stored: Stored, wanted: Tensor, config: Any, architecture: Architecture) -> Tensor:
    if stored.shape != wanted.shape:
        raise Damaged(f"tensor {shown(name)} has the shape {list(stored.shape)}, not {list(wanted.shape)}")
    try:
        weight = stored.read()
    except Unsupported as error:
        raise Unsupported(f"tensor {shown(name)}: {error}") from error
    if not bool(torch.isfinite(weight).all()):
        raise Damaged(f"tensor {shown(name)} is not finite (nan or inf)")
    if architecture.norms_from_one and name.endswith("norm.weight"):
        return weight - 1
    order = row_order(name, len(weight), config, architecture)
    return weight if order is None else weight[order]


def row_order(name: str, rows: int, config: Any, architecture: Architecture) -> Tensor | None:
    """The file's rows, int64 [rows], in the order that the model has them; None: as they are."""
    for part, heads in ((".attn_q.", config.num_attention_heads), (".attn_k.", config.num_key_value_heads)):
        if architecture.interleaved and part in name:
            return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)
    return None
