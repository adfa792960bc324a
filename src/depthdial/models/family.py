"""What the project must know of a family of models. A description is read from the modules of a layer where they have
the usual names, and from the fields that the configuration's type declares; a `Family` says what differs beside that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from depthdial.core.cost import LayerWork
from depthdial.core.method import Dims

ATTN, MLP = "self_attn", "mlp"
"""A layer's attention and MLP, in all families."""
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Linear maps that some families keep as one, their rows one after the other."""


@dataclass(frozen=True)
class Family:
    """What of a family cannot be read from its modules."""

    model_type: str
    """`config.model_type` of the text model."""
    norms: str = "llama"
    """How norms round: "llama" before the weight, "once" after it, "plus_one" after it, which is 1 + weight."""
    exact_rope: bool = False
    """Are heads turned in fp32, and rounded once?"""
    neighbours: bool = False
    """Does the rope turn the numbers 2 i and 2 i + 1 of a head together, not i and i + half?"""
    norms_turned: bool = False
    """Are q and k normed after the rope?"""
    turns: Callable[[Any, int], bool] = lambda config, index: True
    """Has a layer a rope? Of a configuration and the layer's index."""
    query_scale: Callable[[Any], Callable[[Tensor], Tensor]] | None = None
    """Of a configuration: the factor on queries, fp32 [N], by places, int [N]."""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    """Fields with which all that is odd about the family shows in a model of six layers: for tests."""

    @property
    def example(self) -> Any:
        """The family's configuration class."""
        return CONFIG_MAPPING[self.model_type]

    def layer(self, config: PretrainedConfig) -> nn.Module:
        """A layer without weights, for who has a configuration alone."""
        shallow: Any = copy.deepcopy(config)
        shallow.num_hidden_layers = 1
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[self.example]
        with torch.device("meta"):
            return kind(shallow).get_decoder().layers[0]

    def dims(self, config: PretrainedConfig, layer: nn.Module | None = None) -> Dims:
        """What parts may depend on. layer: one of the model's, not converted; None: made of the configuration."""
        layer = self.layer(config) if layer is None else layer
        linears = {
            name.rpartition(".")[2]: (child.in_features, child.out_features)
            for name, child in layer.named_modules() if isinstance(child, nn.Linear)
        }  # fmt: skip
        mixture = mixture_of(layer)
        wide = config.intermediate_size if mixture is None else mixture.top_k * mixture.width
        return Dims(config.hidden_size, wide, config.rms_norm_eps, linears)

    def work(self, layer: nn.Module, config: PretrainedConfig, index: int) -> LayerWork:
        """The layer's price list. Of experts a token pays those that it runs, and all of what chooses them."""
        mixture, mlp = mixture_of(layer), layer.get_submodule(MLP)
        maps: dict[str, Any] = dict(layer.get_submodule(ATTN).named_children())
        heads, groups = maps["o_proj"].in_features, config.num_key_value_heads * head_dim(config)
        groups = maps["k_proj"].out_features if "k_proj" in maps else groups
        return LayerWork(
            kv=2 * groups * config.hidden_size,
            attn=2 * heads * config.hidden_size,
            mlp=sum(child.weight.numel() for child in mlp.modules() if isinstance(child, nn.Linear))
            + (0 if mixture is None else mixture.work),
            attend=2 * heads,
            kv_width=2 * groups,
            window=self.window(config, index),
        )

    def window(self, config: PretrainedConfig, index: int) -> int | None:
        """How many tokens, itself included, a token of the layer attends to; None is all."""
        kinds = getattr(config, "layer_types", None)  # absent: every layer slides, where one does
        slides = kinds is None or kinds[index] == "sliding_attention"
        return declared(config, "sliding_window") if slides else None


class Norms(NamedTuple):
    """The names of a layer's norms."""

    before_attn: str | None
    before_mlp: str | None
    """Its output is the MLP's input, and so the adapter's. None: attention and MLP take the stream as it is, and
    routers and adapters see it normed without a weight."""
    after_attn: str | None
    """Of attention's output before the residual is added: part of the unit. Were it outside, it would rescale a soft
    weight away and give the adapter's output the size of an MLP's."""
    after_mlp: str | None


_NORMS = (
    Norms("input_layernorm", "post_attention_layernorm", None, None),
    Norms("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm"),
    Norms(None, None, "post_attention_layernorm", "post_feedforward_layernorm"),
)


def norms_of(layer: nn.Module) -> Norms:
    """Which norms a decoder layer has."""
    there = {name for name, _ in layer.named_children() if name.endswith("layernorm")}
    return next(norms for norms in _NORMS if there == {name for name in norms if name is not None})


class Weightless(nn.Module):
    """An RMSNorm without weight."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., d] -> [..., d] in x's dtype, worked out in fp32."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def input_norm(layer: nn.Module, unit: str, eps: float) -> nn.Module:
    """The norm that what is decided at a unit ("attn" or "mlp") sees the stream by."""
    name = norms_of(layer).before_mlp if unit == "mlp" else norms_of(layer).before_attn
    return Weightless(eps) if name is None else layer.get_submodule(name)


class Mixture(NamedTuple):
    """The experts of a layer in place of one MLP."""

    router: nn.Module
    """[N, d] -> (logits, weights [N, top_k], experts int64 [N, top_k])."""
    experts: nn.Module
    """([N, d], experts, weights) -> [N, d]"""
    top_k: int
    width: int
    """Numbers between the two maps of one expert."""

    @property
    def each(self) -> int:
        """Weights of one expert."""
        return sum(part[0].numel() for part in self.experts.parameters() if part.ndim == 3)

    @property
    def work(self) -> int:
        return self.top_k * self.each + self.router.get_parameter("weight").numel()


def mixture_of(layer: nn.Module) -> Mixture | None:
    """The experts of a layer, where it has some."""
    parts = dict(layer.get_submodule(MLP).named_children())
    if "experts" not in parts:
        return None
    router: Any = parts["router"] if "router" in parts else parts["gate"]
    experts: Any = parts["experts"]
    width = experts.down_proj[0].numel() // router.weight.shape[1]
    return Mixture(router, experts, int(router.top_k), width)


def for_layers(fields: dict[str, Any], blocks: Sequence[int]) -> dict[str, Any]:
    """A configuration's fields for a model whose layers are these of that one's, in this order."""
    new = {**fields, "num_hidden_layers": len(blocks)}
    for name in ("layer_types", "no_rope_layers"):
        if kinds := fields.get(name):
            new[name] = [kinds[block] for block in blocks]
    if fields.get("mlp_only_layers") is not None:
        every, dense = fields["decoder_sparse_step"], fields["mlp_only_layers"]
        new["mlp_only_layers"] = [i for i, block in enumerate(blocks) if block in dense or (block + 1) % every]
        new["decoder_sparse_step"] = 1
    return new


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def declared(config: PretrainedConfig, name: str, default: Any = None) -> Any:
    """A field that the configuration's type knows; a file may say more, which nobody computes with."""
    return getattr(config, name) if hasattr(type(config), name) else default
