"""Which base a plug-in belongs to: a hash of the configuration that matters, and one of the weights.

Weights are hashed as bf16, whatever they are loaded as, so that a model de-quantised once and loaded in fp32 or bf16 is
the same base. Rounded to fp16 first they would be others: whoever does so says what they were (`cast_from`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from depthdial.models.convert import base_weights
from depthdial.models.families import family_of
from depthdial.models.offloaded import brought

FIELDS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_parameters", "hidden_act",
    "tie_word_embeddings", "sliding_window", "layer_types",
)  # fmt: skip
MORE = (
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "no_rope_layers",
    "attn_logit_softcapping", "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
    "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers",
)  # fmt: skip
"""Fields of some types alone; they count where they are set, so that hashes of before stay."""


_CAST = "weights_cast_from"
"""A model's plain attribute: the hash of its weights after a cast, and the one before."""


@dataclass(frozen=True)
class Fingerprint:
    """sha256, hexadecimal, of a base's configuration and of its weights in bf16."""

    model_type: str
    config: str
    weights: str

    def check(self, other: Fingerprint, plugin: str, allow_other_weights: bool) -> None:
        """Raise ValueError unless a plug-in for this base may serve the base `other`."""
        if self.config != other.config:
            raise ValueError(
                f"the plug-in {plugin} was trained for another base ({self.model_type}, configuration "
                f"{self.config[:12]}); this model is {other.model_type}, {other.config[:12]}: train a plug-in for it"
            )
        if self.weights != other.weights and not allow_other_weights:
            raise ValueError(
                f"the plug-in {plugin} was trained on other weights ({self.weights[:12]}) of this configuration than "
                f"these ({other.weights[:12]}); pass --allow-other-weights if that is meant (a LoRA-tuned base, say)"
            )


def fingerprint(model: PreTrainedModel) -> Fingerprint:
    """The fingerprint of a base, converted or not. 135 M weights take about half a second."""
    family_of(model.config)
    return Fingerprint(model.config.model_type, config_hash(model.config), weights_hash(model))


def config_hash(config: PretrainedConfig) -> str:
    """sha256 of the fields that shape the computation, as sorted JSON."""
    fields = config.to_dict()
    chosen = {name: _plain(fields.get(name)) for name in FIELDS}
    chosen |= {name: _plain(fields[name]) for name in MORE if fields.get(name) is not None}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def weights_hash(model: PreTrainedModel) -> str:
    """sha256 over the names, shapes and bf16 bytes of the base's weights, without the parts of a plug-in; of those that
    they were cast from, if that is known and they have not changed since."""
    found = _hash(model)
    cast, before = getattr(model, _CAST, (None, ""))
    return before if found == cast else found


def cast_from(model: PreTrainedModel, before: str) -> None:
    """Note that the model's weights, as they are now, were rounded from those of the hash `before`."""
    vars(model)[_CAST] = (_hash(model), before)


def _hash(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(base_weights(model).items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        raw = brought(model, name, tensor).detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
        digest.update(raw.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: object) -> object:
    """Numbers as written: a GGUF file's 9.999999747378752e-06 and a config's 1e-5 are one value."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
