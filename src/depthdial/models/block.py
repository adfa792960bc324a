"""What the engine must know of a model: tensors and numbers, read off a Hugging Face model of any family.

Nothing is copied: weights are the model's own tensors. This file is *not* about how they are multiplied (the engine).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from depthdial.core.layers import plain
from depthdial.core.routed import Changing
from depthdial.kernels.tensors import Activation, LayerTensors, Linear, ModelTensors, Norm, Rope
from depthdial.models.convert import converted_of, head_of, is_converted, layers_of
from depthdial.models.families import family_of
from depthdial.models.family import Family

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_PARTIAL = "a rope that turns only a part of each head is not supported yet"
_FIXED_ROPES = ("default", "linear", "llama3", "yarn", "proportional")
"""Kinds of rope whose frequencies do not change with the length of the text."""


def spine_of(model: PreTrainedModel) -> ModelTensors:
    """The tensors of a causal LM of a known family, converted or not: one layer for each visit of the program, of an
    unconverted model its layers. Every visit is run by all; what decides is none of this.

    Raises ValueError, naming the feature, for a model that computes in a way the engine does not know.
    """
    family, config = family_of(model.config), model.config
    check_config(config, family)
    decoder = model.get_decoder()
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return ModelTensors(
        embed=embedding.weight,
        embed_scale=_embed_scale(embedding) if family.scales_embeddings else 1.0,
        norm=_norm(decoder.get_submodule("norm"), config, family),
        head=head_of(model).get_parameter("weight"),
        softcap=getattr(config, "final_logit_softcapping", None),
        layers=_blocks(model, family),
        ropes=_ropes(decoder.get_submodule("rotary_emb"), family, config),
    )


def _blocks(model: PreTrainedModel, family: Family) -> tuple[LayerTensors, ...]:
    """A block's further visits share its tensors, but for those that a step's own low-rank change is merged into."""
    config = model.config
    base = [layer_tensors(layer, i, family, config) for i, layer in enumerate(layers_of(model))]
    if not is_converted(model):
        return tuple(base)
    converted, dtype = converted_of(model), base[0].before_attn.weight.dtype
    program, blocks = converted.program, []
    own = [_narrowed(layer_tensors(module, program.own[k].place, family, config), dtype)
           for k, module in enumerate(converted.own)]  # fmt: skip
    for visit in program.visits:
        block = base[visit.block] if visit.block >= 0 else own[-1 - visit.block]
        for s in visit.steps:
            parts = converted.units[s].parts if s in converted.units else {}
            for name, change in converted.method.delta(parts, s).items():
                part = name.removesuffix("_proj")
                weight, bias = getattr(block, part)
                block = block._replace(**{part: Linear(change.merged(weight), bias)})
        blocks.append(block)
    return tuple(blocks)


def _narrowed(block: LayerTensors, dtype: torch.dtype) -> LayerTensors:
    """A method's own block, which is trained in fp32, in the dtype of the model."""

    def to(value: Any) -> Any:
        if isinstance(value, Linear | Norm):
            return type(value)(*(to(each) for each in value))
        return value.detach().to(dtype) if isinstance(value, Tensor) else value

    return block._replace(**{name: to(value) for name, value in block._asdict().items()})


def check_config(config: PretrainedConfig, family: Family) -> None:
    """Raise ValueError, naming the feature, for a configuration that asks for what the engine does not know."""
    if getattr(config, "use_bidirectional_attention", None):
        raise ValueError("this model attends to later tokens (use_bidirectional_attention); the engine decodes forward")
    rope: Any = config.rope_parameters
    for entry in [rope] if "rope_type" in rope else list(rope.values()):
        kind = entry["rope_type"]
        if kind == "longrope" and entry["short_factor"] == entry["long_factor"]:
            continue  # the same at all lengths: how a file says a factor for each pair
        if kind not in _FIXED_ROPES:
            raise ValueError(f"rope type {kind!r} changes with the length of the text and is not supported yet")
        if entry.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(_PARTIAL)
    name = getattr(config, family.activation)
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not known to the engine; it has {', '.join(_ACTIVATIONS)}")


def layer_tensors(layer: nn.Module, index: int, family: Family, config: PretrainedConfig) -> LayerTensors:
    """A decoder layer of the base, the `index`-th. ValueError where a map is none that can be read."""
    attn, mlp = layer.get_submodule(family.attn), layer.get_submodule(family.mlp)
    projections = [_child(attn, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    q, k, v, o, gate, up, down = (
        Linear(child.weight, child.bias)
        for child in [*projections, *(_child(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))]
    )
    head_dim: int = vars(attn)["head_dim"]

    def norm(of: nn.Module, name: str | None) -> Norm | None:
        return None if name is None else _norm(of.get_submodule(name), config, family)

    return LayerTensors(
        q=q, k=k, v=v, o=o, gate=gate, up=up, down=down,
        before_attn=_norm(layer.get_submodule(family.before_attn), config, family),
        before_mlp=_norm(layer.get_submodule(family.before_mlp), config, family),
        after_attn=norm(layer, family.after_attn),
        after_mlp=norm(layer, family.after_mlp),
        q_norm=norm(attn, "q_norm" if family.head_norms else None),
        k_norm=norm(attn, "k_norm" if family.head_norms else None),
        heads=projections[0].out_features // head_dim,
        kv_heads=projections[1].out_features // head_dim,
        head_dim=head_dim,
        scale=float(vars(attn)["scaling"]),
        window=family.window(config, index),
        rope=config.layer_types[index] if family.rope_per_kind else "default",
        activation=_ACTIVATIONS[getattr(config, family.activation)],
    )  # fmt: skip


def _child(of: nn.Module, name: str) -> nn.Linear:
    child = of.get_submodule(name)
    if not isinstance(child, nn.Linear) or not plain(child, but=Changing):
        raise ValueError(
            f"{name} is a {type(child).__name__} that the engine cannot read (a LoRA, quantised or offloaded layer); "
            "merge the adapter (merge_and_unload), load the weights whole, or call model.generate"
        )
    return child


def _norm(module: nn.Module, config: PretrainedConfig, family: Family) -> Norm:
    return Norm(module.get_parameter("weight"), config.rms_norm_eps, family.plus_one)


def _embed_scale(embedding: nn.Embedding) -> float:
    return float(embedding.get_buffer("embed_scale").to(embedding.weight.dtype))


def _ropes(rotary: nn.Module, family: Family, config: PretrainedConfig) -> dict[str, Rope]:
    if not family.rope_per_kind:
        return {"default": Rope(_frequencies(rotary, "inv_freq", config), float(vars(rotary)["attention_scaling"]))}
    return {
        kind: Rope(_frequencies(rotary, f"{kind}_inv_freq", config), float(vars(rotary)[f"{kind}_attention_scaling"]))
        for kind in sorted(set(config.layer_types))
    }


def _frequencies(rotary: nn.Module, name: str, config: PretrainedConfig) -> Tensor:
    frequencies = rotary.get_buffer(name).to(torch.float32)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if 2 * frequencies.numel() != head_dim:
        raise ValueError(_PARTIAL)
    return frequencies
