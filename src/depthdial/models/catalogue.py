"""What runs and what does not, of all types of causal language models that this transformers has: docs/models.md.

Nothing is made but layers without weights, and nothing is fetched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from depthdial.methods import FlexiDepth
from depthdial.models.ahead import skeleton
from depthdial.models.block import layer_tensors
from depthdial.models.convert import convert, layers_of
from depthdial.models.converted import converted_of
from depthdial.models.families import FAMILIES, OWN
from depthdial.models.family import Family, declared

_LLAMA = {"hidden_size": 2048, "intermediate_size": 8192, "num_key_value_heads": 8, "head_dim": 64}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": ("llama", {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
    }),
    "SmolLM2-360M": ("llama", {
        "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
        "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49152,
    }),
    "Llama-3.2-1B": ("llama", {
        **_LLAMA, "num_hidden_layers": 16, "num_attention_heads": 32, "vocab_size": 128256,
    }),
    "Llama-3.1-8B": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    }),
    "Qwen3-0.6B": ("qwen3", {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    }),
    "Qwen3-4B": ("qwen3", {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    }),
    "Qwen3-30B-A3B": ("qwen3_moe", {
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "vocab_size": 151936,
    }),
    "SmolLM3-3B": ("smollm3", {}),
    "Gemma-3-270M": ("gemma3_text", {
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144,
    }),
    "Gemma-3-4B (text)": ("gemma3_text", {
        "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
    }),
    "Phi-4-mini": ("phi3", {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 200064,
    }),
    "OLMo-2-1B": ("olmo2", {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 100352,
    }),
}  # fmt: skip
"""Models that many people have, by the fields that say their sizes."""


_SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300,
}  # fmt: skip
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Floor(NamedTuple):
    """How low the dial of a model goes with FlexiDepth's own fields, relative to dense."""

    name: str
    model_type: str
    weights: float
    """Of the linear maps that a token reads, the head among them, in multiply-accumulates."""
    floor: float


def floor_of(name: str) -> Floor:
    """Of a model in SIZES."""
    kind, fields = SIZES[name]
    config: Any = FAMILIES[kind].example(**fields, **_TOKENS)
    with torch.device("meta"):
        ledger = converted_of(convert(skeleton(config), FlexiDepth())).ledger
    return Floor(name, kind, float(ledger.dense), ledger.floor)


def odds_of(family: Family) -> list[str]:
    """What is odd about a family's layers, in words."""
    config: Any = family.example(**{**_SMALL, **family.tiny, **_TOKENS})
    layers = layers_of(skeleton(config))
    each = [layer_tensors(layer, i, family, config) for i, layer in enumerate(layers)]
    first = each[-1]
    still = sum(not family.turns(config, i) for i in range(len(each)))
    windows = sum(layer.window is not None for layer in each)
    oddities = {
        "experts": first.experts is not None,
        "sinks": first.sinks is not None,
        "no norm before attention and MLP": first.bare,
        "norms after attention and MLP": first.after_attn is not None,
        "norms on q and k": first.q_norm is not None,
        "no gate in the MLP": first.up is None and first.experts is None,
        "windows": windows > 0,
        "some layers without a rope": still > 0,
        "a rope of neighbours": first.pairs == "neighbours",
        "capped scores": first.softcap is not None,
        "multipliers": first.residual != 1.0,
        "queries that grow with their place": family.query_scale is not None,
    }
    return [name for name, there in oddities.items() if there]


def obstacle(kind: str) -> str:
    """Why models of a type cannot be converted, read off its configuration."""
    config: Any = CONFIG_MAPPING[kind]
    parts = {**getattr(config, "sub_configs", {}), **getattr(config, "sub_configs_defaults", {})}
    text: Any = parts.get("text_config")
    text = getattr(text, "config_class", text)
    if (name := getattr(text, "model_type", None)) in FAMILIES:
        return f"opened as its language model, `{name}`"
    if "text_config" in parts:
        return "a model of several parts, whose language model is of no known type"

    def has(*names: str) -> bool:
        return any(hasattr(config, name) for name in names)

    if declared(config, "is_encoder_decoder") or has("encoder_layers", "decoder_layers"):
        return "an encoder and a decoder"
    if has("mamba_d_conv", "mamba_d_state", "state_size", "conv_kernel", "linear_conv_kernel_dim", "conv_L_cache",
           "linear_num_key_heads", "lru_width", "attention_hidden_size", "mamba_num_heads"):  # fmt: skip
        return "layers with a state: no attention in some of them"
    if not has("rope_parameters"):
        return "positions that are learned, or biases of attention: no rope"
    if has("kv_lora_rank", "q_lora_rank"):
        return "latent attention (low-rank K and V)"
    if not has("rms_norm_eps"):
        return "norms with means (LayerNorm), or without an epsilon of their own"
    if has("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        return "a mixture of experts of another kind (shared experts, scores of sigmoids, or groups)"
    return "layers of another shape; nobody has described them yet"


def kinds() -> list[str]:
    """All types of causal language models, without our own."""
    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not kind.startswith(OWN)]


def markdown() -> str:
    """docs/models.md."""
    known = kinds()
    lines = [
        "# Models",
        "",
        "Written by `depthdial models --markdown`; do not edit it.",
        "",
        f"Of the {len(known)} types of causal language models in transformers {transformers.__version__}, "
        f"{len(FAMILIES)} can be converted. Tests try each on a tiny random model with the oddities of its type: a "
        "step of training, a map, saving, exporting, and texts of the engine, which at full depth are those of Hugging "
        "Face, token for token (`tests/laws/test_families.py`). Real weights were tried for `llama` and "
        "`gemma3_text` only.",
        "",
        "On a CPU they run in native kernels; those with experts run in PyTorch, which a line says, and a skipped "
        "layer skips its experts. On a GPU layers with nothing odd but windows, norms and a rope of each kind run in "
        "Triton, others in PyTorch. vLLM runs llama, mistral, qwen2 and qwen3. Where there is no norm before attention "
        "and MLP, routers and adapters see the stream normed without a weight. Ropes may be of any kind that "
        "transformers knows; with `dynamic` and `longrope` a text is not read from another's cache.",
        "",
        "| type | what is odd about its layers | engine on a CPU |",
        "|---|---|---|",
    ]
    for kind, family in FAMILIES.items():
        odd = odds_of(family)
        engine = "PyTorch" if "experts" in odd or "sinks" in odd else "native"
        lines.append(f"| `{kind}` | {', '.join(odd) or 'nothing'} | {engine} |")
    lines += [
        "",
        "## How low the dial goes",
        "",
        "The cheapest way of a token through FlexiDepth's layers (the upper half, its own fields), relative to dense, "
        "as everywhere: linear weights with the head, K and V of skipped layers, routers and adapters counted.",
        "",
        "| model | type | weights a token reads | floor |",
        "|---|---|---|---|",
    ]
    for name in SIZES:
        found = floor_of(name)
        lines.append(f"| {name} | `{found.model_type}` | {found.weights / 1e9:.2f} B | {found.floor:.2f} |")
    lines += ["", "## Refused, in one line, and why", "", "| why | types |", "|---|---|"]
    reasons: dict[str, list[str]] = {}
    for kind in known:
        if kind not in FAMILIES:
            reasons.setdefault(obstacle(kind), []).append(f"`{kind}`")
    for reason, types in sorted(reasons.items()):
        lines.append(f"| {reason} | {', '.join(types)} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """A line for each family."""
    return "\n".join(f"{kind}: {', '.join(odds_of(family)) or 'as Llama'}" for kind, family in FAMILIES.items())
