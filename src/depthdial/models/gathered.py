"""Run a routed layer for the tokens that run it only, with gradients: training at the speed of the layers executed.

Stands where a whole Llama layer stands, inside `Routed`, which decides before it runs its unit. K and V are projected
for every token; queries, attention rows, the output projection and the MLP are computed for kept tokens, and a skipped
token comes out as it went in. Forward it equals the layer in `Routed`, whatever the decision. Backward it differs in
one term: where a method's `run` has a gradient at skipped tokens (SkipLayer's straight-through estimator), it is
<dy, F(x) - x>, and F(x) is what is not computed here; it is left out. Kept tokens and the method's own loss train the
router then, as they do in mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    eager_attention_forward,
    rotate_half,
)

from depthdial.core.decision import Site
from depthdial.core.route import Route
from depthdial.models.convert import route_of, routed
from depthdial.models.evict import Evicting

SIZES = 32
"""How many numbers of rows there are; a 64th of all tokens, on average, is run for nothing."""


class _Taken(torch.autograd.Function):
    """x[rows] for rows that differ. torch's own backward adds up, as rows might be equal, one by one on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (grad,), (rows,) = upstream, ctx.saved_tensors
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, rows, grad), None


class GatheredLayer(nn.Module):
    """A Llama layer's own modules, run for the tokens that the route keeps at `site`."""

    def __init__(self, layer: LlamaDecoderLayer, site: Site, route: Route):
        super().__init__()
        for name, child in layer.named_children():  # the layer's own names, so that checkpoints do not change
            self.add_module(name, child)
        self._layer = (layer,)  # for its types; hidden from the module tree
        self.site, self.route = site, route
        self.ran = 0
        """Tokens of the last pass that ran the layer."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: [B, T, d] -> [B, T, d]; attention_mask: [B or 1, 1, T, K], bool or added to scores."""
        assert position_embeddings is not None
        (layer,), x = self._layer, hidden_states
        attn: LlamaAttention = layer.self_attn
        (batch, length, _), flat = x.shape, x.flatten(0, 1)
        keep = self.route.decisions[self.site].keep
        rows = keep.flatten().nonzero().squeeze(-1)
        self.ran = len(rows)
        # skipped tokens fill up to one of a few sizes: kernels are made for a shape, and sizes would never come back
        more = min(_rounded(len(rows), batch * length) - len(rows), batch * length - len(rows))
        some = torch.cat([rows, (~keep).flatten().nonzero().squeeze(-1)[:more]])

        cos, sin = (e.expand(batch, -1, -1) for e in position_embeddings)
        z, k, v = self.keys(x, cos, sin)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, attn.layer_idx)
        q = attn.q_proj(_Taken.apply(z.flatten(0, 1), some))[: len(rows)].unflatten(-1, (-1, attn.head_dim))
        q = _turned(q, cos.flatten(0, 1)[rows][:, None], sin.flatten(0, 1)[rows][:, None])  # [rows, heads, head size]

        # queries side by side in as many columns as the row with most of them needs
        columns = min(_rounded(max(1, int(keep.sum(-1).max())), length), length)
        slots = rows // length * columns + (keep.cumsum(-1) - 1).flatten()[rows]
        places = rows.new_zeros(batch * columns).index_copy(0, slots, rows % length).view(batch, columns)
        padded = q.new_zeros(batch * columns, *q.shape[1:]).index_copy(0, slots, q).unflatten(0, (batch, columns))
        seen = self.attend(padded.transpose(1, 2), k, v, _mask(attention_mask, places, length, k), **kwargs)
        seen = F.pad(_Taken.apply(seen.reshape(batch * columns, -1), slots), (0, 0, 0, more))
        y = self.finish(_Taken.apply(flat, some), seen)[: len(rows)]
        return flat.index_copy(0, rows, y.to(x.dtype)).view_as(x)

    # what is free of routing, to be compiled piece by piece
    PIECES = ("keys", "attend", "finish")

    def keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [B, T, d]; cos, sin: [B, T, hd] -> normed x, and K and V of all tokens, [B, kv heads, T, hd]."""
        (layer,) = self._layer
        attn, heads = layer.self_attn, (*x.shape[:2], -1, layer.self_attn.head_dim)
        z = layer.input_layernorm(x)
        k = _turned(attn.k_proj(z).view(heads), cos[:, :, None], sin[:, :, None]).transpose(1, 2)
        return z, k, attn.v_proj(z).view(heads).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
        """q: [B, heads, columns, hd]; mask: [B, 1, columns, K] -> [B, columns, heads, hd]."""
        attn = self._layer[0].self_attn
        run: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            str(attn.config._attn_implementation), eager_attention_forward
        )
        return run(attn, q, k, v, mask, scaling=attn.scaling, **kwargs)[0]

    def finish(self, x: Tensor, seen: Tensor) -> Tensor:
        """The layer's output for rows x and what their queries saw, [n, d]."""
        (layer,) = self._layer
        h = x + layer.self_attn.o_proj(seen)
        return h + layer.mlp(layer.post_attention_layernorm(h))


def gather(model: PreTrainedModel) -> Callable[[], None]:
    """Let a routed model run each whole routed layer for its kept tokens only; call what is returned to undo it.

    Raises ValueError for a method or a family that cannot be gathered.
    """
    sites = routed(model)
    if not sites or not model.method.skips:  # type: ignore[union-attr]
        raise ValueError("nothing is skipped in this model, so there is nothing to gather; leave --gather off")
    before: list[tuple[nn.Module, nn.Module]] = []
    for site, unit in sites.items():
        holder = unit.unit if isinstance(unit.unit, Evicting) else unit
        layer = holder.unit
        if not isinstance(layer, LlamaDecoderLayer):
            raise ValueError("only whole layers of Llama models can be gathered in training; leave --gather off")
        before.append((holder, layer))
        holder.unit = GatheredLayer(layer, site, route_of(model))

    def undo() -> None:
        for holder, layer in before:
            holder.unit = layer

    return undo


def _rounded(count: int, most: int) -> int:
    """`count`, or a little more: one of about SIZES numbers up to `most`."""
    step = max(1, most // SIZES)
    return -(-count // step) * step


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + rotate_half(x) * sin


def _mask(given: Tensor | None, places: Tensor, length: int, keys: Tensor) -> Tensor:
    """The rows of the layer's mask that belong to the queries, [B, 1, columns, K]. places: int64 [B, columns], each
    query's place in the pass; without a mask, a query sees the keys up to its own."""
    batch, columns = places.shape
    total = keys.shape[-2]
    if given is None:
        return torch.arange(total, device=places.device) <= (places + total - length)[:, None, :, None]
    index = places[:, None, :, None].expand(batch, given.shape[1], columns, total)
    return given[..., :total].expand(batch, -1, -1, -1).gather(2, index)
