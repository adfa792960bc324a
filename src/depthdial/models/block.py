"""What the engine must know of a model: tensors and numbers, read off a Hugging Face model of any family.

Nothing is copied: weights are the model's own tensors. This file is *not* about how they are multiplied (the engine).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from depthdial.core.layers import plain
from depthdial.core.method import LowRank
from depthdial.core.routed import Changing
from depthdial.kernels.tensors import Activation, Experts, LayerTensors, Linear, ModelTensors, Norm
from depthdial.models.convert import converted_of, head_of, is_converted, layers_of
from depthdial.models.families import family_of
from depthdial.models.family import ATTN, FUSED, MLP, Family, declared, head_dim, mixture_of, norms_of
from depthdial.models.head import shaping_of
from depthdial.models.ropes import STILL, check_ropes, ropes_of

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2",
}  # fmt: skip
_UNKNOWN = ("clip_qkv",)
"""Fields that change what some types compute, where they are set."""
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


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
    scale, softcap = shaping_of(config)
    return ModelTensors(
        embed=embedding.weight,
        embed_scale=_embed_scale(embedding) * declared(config, "embedding_multiplier", 1.0),
        norm=_norm(decoder.get_submodule("norm"), config, family, embedding.weight.dtype),
        head=head_of(model).get_parameter("weight"),
        softcap=softcap,
        logit_scale=scale,
        layers=_blocks(model, family),
        ropes=ropes_of(decoder.get_submodule("rotary_emb"), family, config),
        query_scale=None if family.query_scale is None else family.query_scale(config),
    )


def _blocks(model: PreTrainedModel, family: Family) -> tuple[LayerTensors, ...]:
    """A block's further visits share its tensors, but for those that a step's own low-rank change is merged into."""
    config = model.config
    base = [layer_tensors(layer, i, family, config) for i, layer in enumerate(layers_of(model))]
    if not is_converted(model):
        return tuple(base)
    converted, dtype = converted_of(model), base[0].before_attn.weight.dtype
    program, blocks = converted.program, []
    own = [_narrowed(layer_tensors(module, program.own[k].place, family, config, dtype), dtype)
           for k, module in enumerate(converted.own)]  # fmt: skip
    for visit in program.visits:
        block = base[visit.block] if visit.block >= 0 else own[-1 - visit.block]
        for s in visit.steps:
            parts = converted.units[s].parts if s in converted.units else {}
            for name, change in converted.method.delta(parts, s).items():
                block = _changed(block, name, change)
        blocks.append(block)
    return tuple(blocks)


def _changed(block: LayerTensors, name: str, change: LowRank) -> LayerTensors:
    """With a low-rank change merged into a linear map, be it one of those that are kept as one."""
    begin = 0
    for part in FUSED.get(f"{name.removesuffix('_proj')}_proj", (name,)):
        part = part.removesuffix("_proj")
        part = "gate" if part == "up" and block.up is None else part  # of an MLP without a gate it is the first map
        weight, bias = getattr(block, part)
        end = begin + len(weight)
        merged = LowRank(change.down, change.up[begin:end]).merged(weight)
        block, begin = block._replace(**{part: Linear(merged, bias)}), end
    return block


def _narrowed(block: LayerTensors, dtype: torch.dtype) -> LayerTensors:
    """A method's own block, which is trained in fp32, in the dtype of the model."""

    def to(value: Any) -> Any:
        if isinstance(value, Linear | Norm):
            return type(value)(*(to(each) for each in value))
        return value.detach().to(dtype) if isinstance(value, Tensor) else value

    return block._replace(**{name: to(value) for name, value in block._asdict().items()})


def check_config(config: PretrainedConfig, family: Family) -> None:
    """Raise ValueError, naming the feature, for a configuration that asks for what the engine does not know."""
    if declared(config, "use_bidirectional_attention"):
        raise ValueError("this model attends to later tokens (use_bidirectional_attention); the engine decodes forward")
    if other := next((name for name in _UNKNOWN if declared(config, name) is not None), None):
        raise ValueError(f"this model sets {other}, which the engine does not know")
    check_ropes(config)
    if (name := _activation(config)) not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not known to the engine; it has {', '.join(_ACTIVATIONS)}")


def _activation(config: Any) -> str:
    return declared(config, "hidden_activation") or config.hidden_act


def layer_tensors(
    layer: nn.Module, index: int, family: Family, config: Any, dtype: torch.dtype | None = None
) -> LayerTensors:
    """A decoder layer of the base, the `index`-th. dtype: of its experts and norms; None: its own. ValueError where a
    map is none that can be read."""
    attn, names, size = layer.get_submodule(ATTN), norms_of(layer), head_dim(config)
    q, k, v, o = _linears(attn, _PROJECTIONS, (config.num_attention_heads * size, config.num_key_value_heads * size))
    children, like = dict(attn.named_children()), attn.get_submodule("o_proj").get_parameter("weight")
    dtype = dtype or like.dtype
    gate, up, down, experts = _mlp(layer, dtype)

    def norm(of: nn.Module, name: str | None) -> Norm | None:
        return None if name is None else _norm(of.get_submodule(name), config, family, dtype)

    def before(name: str | None) -> Norm:
        ones = torch.ones(config.hidden_size, dtype=dtype, device=like.device)
        return (
            Norm(ones, config.rms_norm_eps) if name is None else _norm(layer.get_submodule(name), config, family, dtype)
        )

    kind = "default" if "rope_type" in config.rope_parameters else config.layer_types[index]
    return LayerTensors(
        q=q, k=k, v=v, o=o, gate=gate, up=up, down=down, experts=experts,
        before_attn=before(names.before_attn),
        before_mlp=before(names.before_mlp),
        after_attn=norm(layer, names.after_attn),
        after_mlp=norm(layer, names.after_mlp),
        bare=names.before_attn is None,
        q_norm=norm(attn, next((name for name in ("q_norm", "query_layernorm") if name in children), None)),
        k_norm=norm(attn, next((name for name in ("k_norm", "key_layernorm") if name in children), None)),
        norms_turned=family.norms_turned,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=size,
        scale=float(vars(attn)["scaling"]),
        window=family.window(config, index),
        softcap=declared(config, "attn_logit_softcapping"),
        sinks=dict(attn.named_parameters(recurse=False)).get("sinks"),
        residual=declared(config, "residual_multiplier", 1.0),
        rope=kind if family.turns(config, index) else STILL,
        pairs="neighbours" if family.neighbours else "halves",
        activation=_ACTIVATIONS[_activation(config)],
    )  # fmt: skip


def _mlp(layer: nn.Module, dtype: torch.dtype) -> tuple[Linear, Linear | None, Linear, Experts | None]:
    mlp, mixture = layer.get_submodule(MLP), mixture_of(layer)
    if mixture is not None:
        router, experts = mixture.router, mixture.experts
        if router.get_parameter("weight").dtype != dtype:
            router, experts = (copy.deepcopy(part).to(dtype) for part in (router, experts))

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            _, weights, chosen = router(x)
            return experts(x, chosen, weights), chosen

        weight = router.get_parameter("weight")
        nothing = Linear(weight[:0])
        return nothing, None, nothing, Experts(run, weight.nbytes, mixture.each * weight.element_size())
    children = dict(mlp.named_children())
    if "gate_up_proj" in children or "gate_proj" in children:
        gate, up, down = _linears(mlp, ("gate_proj", "up_proj", "down_proj"))
        return gate, up, down, None
    gate, down = _linears(mlp, ("up_proj", "down_proj"))
    return gate, None, down, None


def _linears(of: nn.Module, names: tuple[str, ...], sizes: tuple[int, ...] = ()) -> list[Linear]:
    """Linear maps by their names, or of the one that holds them. sizes: rows of the first of those and of the others;
    (): all the same."""
    children = {name for name, _ in of.named_children()}
    linears: list[Linear] = []
    for fused, parts in FUSED.items():
        if fused in children and names[: len(parts)] == parts:
            child = _child(of, fused)
            each = child.out_features // len(parts)
            rows = [each] * len(parts) if not sizes else [sizes[0], *sizes[1:] * (len(parts) - 1)]
            biases = [None] * len(parts) if child.bias is None else child.bias.split(rows)
            linears = [Linear(*pair) for pair in zip(child.weight.split(rows), biases, strict=True)]
            names = names[len(parts) :]
    return linears + [Linear(child.weight, child.bias) for child in (_child(of, name) for name in names)]


def _child(of: nn.Module, name: str) -> nn.Linear:
    child = of.get_submodule(name)
    if not isinstance(child, nn.Linear) or not plain(child, but=Changing):
        raise ValueError(
            f"{name} is a {type(child).__name__} that the engine cannot read (a LoRA, quantised or offloaded layer); "
            "merge the adapter (merge_and_unload), load the weights whole, or call model.generate"
        )
    return child


def _norm(module: nn.Module, config: PretrainedConfig, family: Family, dtype: torch.dtype) -> Norm:
    weight = module.get_parameter("weight").to(dtype)
    return Norm(weight, config.rms_norm_eps, family.norms == "plus_one", family.norms == "once")


def _embed_scale(embedding: nn.Embedding) -> float:
    """As rounded to the model's dtype."""
    scale = dict(embedding.named_buffers()).get("embed_scale")
    return 1.0 if scale is None else float(scale.to(embedding.weight.dtype))
