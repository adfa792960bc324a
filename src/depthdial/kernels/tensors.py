"""What a native pass is given: tensors and numbers of each layer, and nothing of where they came from.

Weights have the dtype of the model (bfloat16 or float32) or are `Int8` or `Blocks`; shapes are those of
`torch.nn.Linear`, [out, in]. d is the hidden size, r the rank of a router, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from depthdial.kernels.blocks import Blocks

PAGE = 64
"""Tokens in one page of the KV cache."""
MAX_TOKENS = 64
"""Most tokens of a small native pass, which reads each weight once."""
END = 1 << 30
"""Beyond the last visit: the final norm and the head."""


class Int8(NamedTuple):
    """A weight quantised symmetrically, one scale a row: weight ~ values * scale[:, None]."""

    values: Tensor
    """int8 [out, in], within -127..127."""
    scale: Tensor
    """float32 [out]."""


Weight = Tensor | Int8 | Blocks
Activation = Literal["silu", "gelu_tanh", "relu2"]
Pairs = Literal["halves", "neighbours"]


def rows_of(weight: Weight) -> int:
    """Of a matrix [rows, cols]."""
    return weight.rows if isinstance(weight, Blocks) else len(weight.values if isinstance(weight, Int8) else weight)


class Experts(NamedTuple):
    """A mixture of experts."""

    run: Callable[[Tensor], tuple[Tensor, Tensor]]
    """T [N, d] -> T [N, d], and the experts that each token ran, int64 [N, k]."""
    router_bytes: int
    each_bytes: int
    count: Callable[[int], None] = lambda size: None
    """Takes the bytes of weights that were read."""

    def __call__(self, x: Tensor) -> Tensor:
        update, chosen = self.run(x)
        self.count(self.router_bytes + len(chosen.unique()) * self.each_bytes)
        return update


class Linear(NamedTuple):
    weight: Weight
    bias: Tensor | None = None


class Norm(NamedTuple):
    """RMSNorm."""

    weight: Tensor
    eps: float
    plus_one: bool = False
    """By 1 + weight, as in Gemma, which rounds once."""
    once: bool = False
    """Is the weight multiplied in fp32, and the product rounded once? Else it is rounded first, as in Llama."""


class Dense(NamedTuple):
    """code -> weight code + bias."""

    weight: Tensor
    """[out, in]. As the first operation the input is the token's normed one, multiplied and rounded in the dtype of the
    model; a float32 weight in a bfloat16 model is multiplied in float32. float32 [out, in] as a later operation."""
    bias: Tensor | None = None
    """float32 [out]."""


class Act(NamedTuple):
    """A function of each number of the code."""

    name: Literal["tanh", "silu", "relu", "gelu", "sigmoid"]


class Look(NamedTuple):
    """As the first operation: what the head says of the stream so far: top probability, and its gap to the second."""

    rows: int | None = None
    """Over the first so many tokens of the vocabulary; None: all."""


Op = Dense | Norm | Act | Look


class RouterTensors(NamedTuple):
    """The first operation is a `Dense` of the normed input or a `Look`, the last leaves one number. All but the first
    are in fp32, a `Norm` among them."""

    ops: tuple[Op, ...]
    cut: float = 0.0
    """A token runs where number + offset > cut."""
    soft: bool = False
    """Kept rows weigh their update with g = sigmoid(number + offset), skipped ones their adapter with 1 - g."""


class Branch(NamedTuple):
    """Which of the tokens that wait at a step run it, and where each goes from there."""

    by: Literal["no", "ops", "table", "open"] = "no"
    """"no": all run. "ops": `router`. "table": known before the pass (`PassTokens.given`). "open": the caller decides
    in the middle of the pass."""
    router: RouterTensors | None = None
    then: int | None = None
    """The visit that a token goes to which ran it, or END; None: what follows."""
    otherwise: int | None = None
    """The same of a token that did not."""


class AdapterTensors(NamedTuple):
    """The bypass of skipped rows: down(silu(gate u) * (up u)), no bias."""

    gate: Weight
    up: Weight
    down: Weight


class LayerTensors(NamedTuple):
    """One visit of a decoder layer by the stream, in the order it runs."""

    before_attn: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    before_mlp: Norm
    gate: Linear
    up: Linear | None
    """None: the MLP is not gated, down(act(gate x))."""
    down: Linear
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """On q . k."""
    rope: str
    """Key into `ModelTensors.ropes`."""
    activation: Activation = "silu"
    window: int | None = None
    """A token sees itself and the window - 1 before it; None sees everything."""
    q_norm: Norm | None = None
    """Of each head of q before the rope, or, where its weight is as wide as they are together, of all at once."""
    k_norm: Norm | None = None
    after_attn: Norm | None = None
    """Of attention's output, before it joins the stream."""
    after_mlp: Norm | None = None
    softcap: float | None = None
    """Scores become softcap * tanh(scores / softcap)."""
    bare: bool = False
    """Do attention and MLP take the stream as it is? Then the norms before them are what routers and adapters see."""
    residual: float = 1.0
    """On every update, a bypass among them."""
    norms_turned: bool = False
    """Are q and k normed after the rope?"""
    pairs: Pairs = "halves"
    """Which numbers of a head the rope turns together: i and i + rotated / 2, or 2 i and 2 i + 1."""
    sinks: Tensor | None = None
    """[heads]: scores of keys without values, one for each head."""
    experts: Experts | None = None
    """In place of the MLP; `gate`, `up` and `down` hold nothing then."""
    branch: Branch = Branch()
    """Before attention: of the whole visit, or of attention alone where there is an `mlp_branch`."""
    mlp_branch: Branch | None = None
    """Of the MLP alone, by its own normed input."""
    adapter: AdapterTensors | None = None
    """For tokens that wait here and do not run the visit (its MLP, where that has a branch of its own)."""
    cache: int | None = None
    """Row of the page tables that its K and V lie in; None: that of its own index among the visits."""
    absent: Literal["project", "nothing"] = "project"
    """What a token of the pass leaves that does not run attention here, be it that it has left or jumped over this
    visit: K and V of its stream as it is by now, or nothing."""
    whole: bool = False
    """Weights are on the whole visit, y = x + run (layer(x) - x), and not on its MLP; without an `mlp_branch`."""
    base: bool = True
    """Does the untouched base run it? A token at offset +inf runs these visits and no others, whatever the branches."""


class Rope(NamedTuple):
    inv_freq: Tensor
    """float32 [rotated / 2]: the first numbers of a head are turned, mostly all of them; zeros turn nothing."""
    scaling: float = 1.0
    """On cos and sin."""
    exact: bool = False
    """Are heads turned in fp32, and the result rounded once? Else cos, sin and products are rounded, too."""
    stretch: Callable[[Tensor], Tensor] | None = None
    """Frequencies where they follow from the length of a text: int64 [2, N], how long it is so far and how long it will
    be at most -> float32 [N, rotated / 2]. `inv_freq` is that of short ones."""


class Step(NamedTuple):
    """A row of decisions: one for a visit, or two where attention and MLP have branches of their own."""

    visit: int
    unit: Literal["layer", "attn", "mlp"]
    branch: Branch


class ModelTensors(NamedTuple):
    """A causal LM. Nothing of it need be a copy: weights are the model's own."""

    embed: Weight
    """[V, d]."""
    layers: tuple[LayerTensors, ...]
    """The visits in order; two may hold the very same weights."""
    norm: Norm
    head: Weight
    """[V, d]; the very object `embed` where they are tied."""
    ropes: dict[str, Rope]
    embed_scale: float = 1.0
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""
    logit_scale: float = 1.0
    """On logits, before that."""
    query_scale: Callable[[Tensor], Tensor] | None = None
    """On queries, after the rope: int [N], places in the text -> float32 [N]; None: 1."""

    @property
    def stretches(self) -> bool:
        """Do frequencies follow from the length of a text?"""
        return any(rope.stretch is not None for rope in self.ropes.values())

    def frequencies(self, lengths: Tensor) -> Tensor | None:
        """`PassTokens.inv_freq`. lengths: int64 [2, N], see `Rope.stretch`."""
        if not self.stretches:
            return None
        count = lengths.shape[1]
        each = (rope.inv_freq.expand(count, -1) if rope.stretch is None else rope.stretch(lengths)
                for rope in self.ropes.values())  # fmt: skip
        return torch.stack(tuple(each), 1)

    @property
    def steps(self) -> tuple[Step, ...]:
        steps: list[Step] = []
        for visit, layer in enumerate(self.layers):
            if layer.mlp_branch is None:
                steps.append(Step(visit, "layer", layer.branch))
            else:
                steps += (Step(visit, "attn", layer.branch), Step(visit, "mlp", layer.mlp_branch))
        return tuple(steps)

    @property
    def caches(self) -> int:
        """Rows of the page tables."""
        return 1 + max(index if layer.cache is None else layer.cache for index, layer in enumerate(self.layers))
