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
    before_mlp: str = "post_attention_layernorm"
    """The norm whose output is the MLP's input, and so the adapter's."""
    after_attn: str | None = None
    """A norm applied to attention's output before the residual is added: part of the unit, so that a skip is exact."""
    after_mlp: str | None = None
    sliding: bool = False
    """Do some layers attend to a window only (`config.layer_types`, `config.sliding_window`)?"""

    def dims(self, config: PretrainedConfig) -> Dims:
        return Dims(config.hidden_size, config.intermediate_size, config.rms_norm_eps)

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
            window=self._window(config, index),
        )

    def _window(self, config: PretrainedConfig, index: int) -> int | None:
        if not self.sliding or config.sliding_window is None:
            return None
        kinds = getattr(config, "layer_types", None)  # absent: every layer slides (Mistral)
        return config.sliding_window if kinds is None or kinds[index] == "sliding_attention" else None
