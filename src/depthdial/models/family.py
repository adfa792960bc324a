"""What the project must know of a model family: where a layer keeps its units, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from depthdial.core.cost import LayerWork
from depthdial.core.method import Dims


@dataclass(frozen=True)
class Family:
    """The names a family's decoder layer gives to its units. One instance per family, in a file of its own."""

    model_type: str
    """`config.model_type` of the text model."""
    example: Callable[..., PretrainedConfig]
    """The family's configuration class: tests build tiny random models from it."""
    attn: str = "self_attn"
    mlp: str = "mlp"
    before_attn: str = "input_layernorm"
    before_mlp: str = "post_attention_layernorm"
    """The norm whose output is the MLP's input, and so the adapter's."""
    after_attn: str | None = None
    """A norm applied to attention's output before the residual is added: part of the unit, so that a skip is exact."""
    after_mlp: str | None = None
    head_norms: bool = False
    """Are q and k normed, head by head, before the rope?"""
    qkv_bias: bool = False
    """Have q, k and v biases, whatever the configuration says?"""
    plus_one: bool = False
    """Do norms scale by 1 + weight, in fp32?"""
    scales_embeddings: bool = False
    rope_per_kind: bool = False
    """Has each kind of layer (`config.layer_types`) a rope of its own?"""
    activation: str = "hidden_act"
    """The field of the configuration that names the MLP's activation."""
    sliding: bool = False
    """Do some layers attend to a window only (`config.layer_types`, `config.sliding_window`)?"""

    def dims(self, config: PretrainedConfig) -> Dims:
        """What parts may depend on."""
        hidden, wide = config.hidden_size, config.intermediate_size
        size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        heads, groups = config.num_attention_heads * size, config.num_key_value_heads * size
        attn = {"q_proj": (hidden, heads), "k_proj": (hidden, groups), "v_proj": (hidden, groups)}
        mlp = {"gate_proj": (hidden, wide), "up_proj": (hidden, wide), "down_proj": (wide, hidden)}
        return Dims(hidden, wide, config.rms_norm_eps, {**attn, "o_proj": (heads, hidden), **mlp})

    def work(self, layer: nn.Module, config: PretrainedConfig, index: int) -> LayerWork:
        """The layer's price list, counted from its own weights."""
        attn, mlp = layer.get_submodule(self.attn), layer.get_submodule(self.mlp)
        size = {name: child.weight.numel() for name, child in attn.named_modules() if isinstance(child, nn.Linear)}
        width = {name: child.out_features for name, child in attn.named_modules() if isinstance(child, nn.Linear)}
        return LayerWork(
            kv=size["k_proj"] + size["v_proj"],
            attn=size["q_proj"] + size["o_proj"],
            mlp=sum(child.weight.numel() for child in mlp.modules() if isinstance(child, nn.Linear)),
            attend=2 * width["q_proj"],
            kv_width=2 * width["k_proj"],
            window=self.window(config, index),
        )

    def window(self, config: PretrainedConfig, index: int) -> int | None:
        """How many tokens, itself included, a token of the layer attends to; None is all."""
        if not self.sliding or config.sliding_window is None:
            return None
        kinds = getattr(config, "layer_types", None)  # absent: every layer slides (Mistral)
        return config.sliding_window if kinds is None or kinds[index] == "sliding_attention" else None
