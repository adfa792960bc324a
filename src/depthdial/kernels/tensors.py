"""What a native pass is given: tensors and numbers of each layer, and nothing of where they came from.

Weights have the dtype of the model (bfloat16 or float32) or are `Int8`; shapes are those of `torch.nn.Linear`,
[out, in]. d is the hidden size, r the rank of a router, V the vocabulary.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

PAGE = 64
"""Tokens in one page of the KV cache."""
MAX_TOKENS = 64
"""Most tokens of a small native pass, which reads each weight once."""


class Int8(NamedTuple):
    """A weight quantised symmetrically, one scale a row: weight ~ values * scale[:, None]."""

    values: Tensor
    """int8 [out, in], within -127..127."""
    scale: Tensor
    """float32 [out]."""


Weight = Tensor | Int8


class Linear(NamedTuple):
    weight: Weight
    bias: Tensor | None = None


class Norm(NamedTuple):
    """RMSNorm. plus_one: Gemma's (1 + weight), applied in fp32 before rounding; else rounded first, as in Llama."""

    weight: Tensor
    eps: float
    plus_one: bool = False


class RouterTensors(NamedTuple):
    """logit = folded . code + bias. code = tanh(norm(enc @ z)) or norm(tanh(enc @ z)), in fp32 after enc, is that of
    `core.layers.Router` with dec and head folded; code = enc @ z, in fp32 throughout, that of a `LinearRouter`."""

    enc: Tensor
    """[r, d], of the model's dtype."""
    scale: Tensor
    """float32 [r]: the norm's weight."""
    eps: float
    order: Literal["norm_tanh", "tanh_norm", "linear"]
    folded: Tensor
    """float32 [r]."""
    bias: float
    cut: float = 0.0
    """The layer runs where logit + offset > cut."""
    soft: bool = False
    """Kept rows weigh their MLP with g = sigmoid(logit + offset), skipped ones their adapter with 1 - g."""


class AdapterTensors(NamedTuple):
    """The bypass of skipped rows: down(silu(gate u) * (up u)), no bias."""

    gate: Weight
    up: Weight
    down: Weight


class LayerTensors(NamedTuple):
    """One decoder layer, in the order it runs."""

    before_attn: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    before_mlp: Norm
    gate: Linear
    up: Linear
    down: Linear
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """On q . k."""
    rope: str
    """Key into `ModelTensors.ropes`."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    window: int | None = None
    """A token sees itself and the window - 1 before it; None sees everything."""
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    after_attn: Norm | None = None
    after_mlp: Norm | None = None
    router: RouterTensors | None = None
    adapter: AdapterTensors | None = None
    sparse_kv: bool = False
    """K and V are written for the tokens that run the layer, and for no other."""


class Rope(NamedTuple):
    inv_freq: Tensor
    """float32 [head_dim / 2]."""
    scaling: float = 1.0
    """On cos and sin."""


class ModelTensors(NamedTuple):
    embed: Weight
    """[V, d]."""
    layers: tuple[LayerTensors, ...]
    norm: Norm
    head: Weight
    """[V, d]; the very object `embed` where they are tied."""
    ropes: dict[str, Rope]
    embed_scale: float = 1.0
    softcap: float | None = None
