"""Run a routed layer for the tokens that run it only, with gradients: training at the speed of the layers executed.

Is the forward of a whole decoder layer, between the hooks of `Routed`, which decide before the layer runs. K and V are
projected for every token; all else is computed for kept tokens (`engine.layer`), and a skipped token comes out as it
went in. Forward it equals the layer in `Routed`, whatever the decision. Backward it differs in one term: where a
method's `run` has a gradient at skipped tokens (SkipLayer's straight-through estimator), it is <dy, F(x) - x>, and F(x)
is what is not computed here; it is left out. Kept tokens and the method's own loss train the router then, as they do in
mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from depthdial.engine.layer import Angles, Forward
from depthdial.kernels.tensors import LayerTensors, Linear
from depthdial.models.block import layer_tensors
from depthdial.models.convert import layers_of
from depthdial.models.converted import Converted, converted_of
from depthdial.models.families import family_of
from depthdial.models.family import ATTN
from depthdial.models.ropes import STILL

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


class GatheredLayer:
    """A decoder layer, run for the tokens that step `s` is decided to run for. read: its tensors, which whoever shards
    them puts in their places for each pass alone."""

    def __init__(self, attn: Any, s: int, converted: Converted, read: Callable[[], LayerTensors]):
        self.attn, self.s, self.converted, self.read = attn, s, converted, read
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
        x, layer = hidden_states, self.read()
        picked = _picked(self.converted.passing().trace.decisions[self.s].keep.view(x.shape[:2]))
        self.ran = int(picked.real.sum())
        cos, sin = (e.expand(len(x), -1, -1).flatten(0, 1)[:, None].chunk(2, -1)[0] for e in position_embeddings)
        if layer.rope == STILL:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        z, k, v = self.keys(layer, x, (cos, sin))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.attn.layer_idx)
        if attention_mask is not None:
            attention_mask = attention_mask[..., : k.shape[-2]].expand(len(x), -1, -1, -1)
        return self.rest(layer, x, z, (k, v), (cos, sin), attention_mask, picked, **kwargs)

    # what is free of decisions, to be compiled piece by piece
    PIECES = ("keys", "rest")

    def keys(self, layer: LayerTensors, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """x: [B, T, d] -> normed x, [B * T, d], and K and V of all tokens, [B, kv heads, T, hd]."""
        forward = Forward(layer, angles, _product)
        z = forward.taken(x, "attn").flatten(0, 1)
        k, v = (each.unflatten(0, x.shape[:2]).transpose(1, 2) for each in forward.keys(z, None))
        return z, k, v

    def rest(
        self, layer: LayerTensors, x: Tensor, z: Tensor, keys: tuple[Tensor, Tensor], angles: Angles,
        mask: Tensor | None, picked: Picked, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """The layer's output, [B, T, d]: of kept tokens, and x of the others. mask: [B, 1, T, K]."""
        flat, (rows, real, slots, places) = x.flatten(0, 1), picked
        batch, columns = places.shape
        run: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            str(self.attn.config._attn_implementation), eager_attention_forward
        )

        def attend(q: Tensor) -> Tensor:
            # queries of a sequence side by side; a last row, of no sequence, takes what only fills up
            padded = q.new_zeros(batch * columns + 1, *q.shape[1:]).index_copy(0, slots, q)
            queries = padded[:-1].unflatten(0, (batch, columns)).transpose(1, 2)
            seen = run(
                self.attn, queries, *keys, _mask(mask, places, x.shape[1], keys[0]), scaling=layer.scale, **kwargs
            )
            return _Taken.apply(F.pad(seen[0].reshape(batch * columns, -1), (0, 0, 0, 1)), slots)

        some = _Taken.apply(flat, rows)
        y = Forward(layer, angles, _product).whole(some, _Taken.apply(z, rows), rows, attend)
        return flat.index_copy(0, rows, torch.where(real[:, None], y.to(x.dtype), some)).view_as(x)


def gather(model: PreTrainedModel) -> Callable[[], None]:
    """Let a routed model run each whole routed layer for its kept tokens only; call what is returned to undo it.

    Raises ValueError for a method, and for a family, that cannot be gathered.
    """
    converted, family = converted_of(model), family_of(model.config)
    if not converted.program.skips:
        raise ValueError("nothing is skipped in this model, so there is nothing to gather; leave --gather off")
    whole = all(unit.step.unit == "layer" for unit in converted.routed.values())
    if not whole or not converted.program.plain:
        raise ValueError("only whole layers that are skipped, each in its turn, can be gathered; leave --gather off")
    like = layer_tensors(layers_of(model)[0], 0, family, model.config)
    if like.softcap is not None or like.sinks is not None or family.query_scale is not None:
        raise ValueError(f"attention of {family.model_type} cannot be gathered in training; leave --gather off")
    units = [unit.unit for unit in converted.routed.values()]
    for (s, unit), layer in zip(converted.routed.items(), units, strict=True):
        read = partial(layer_tensors, layer, unit.step.block, family, model.config)
        vars(layer)["forward"] = GatheredLayer(layer.get_submodule(ATTN), s, converted, read).forward

    def undo() -> None:
        for layer in units:
            del vars(layer)["forward"]

    return undo


def gathered(layer: nn.Module) -> GatheredLayer | None:
    """What runs a layer for its kept tokens only; None where it runs as ever."""
    owner = getattr(vars(layer).get("forward"), "__self__", None)
    return owner if isinstance(owner, GatheredLayer) else None


class Picked(NamedTuple):
    """Which of B x T tokens run, as places: R of them, a few more than were kept, since kernels are made for a shape
    and sizes would never come back."""

    rows: Tensor
    """int64 [R]: tokens, no two the same."""
    real: Tensor
    """bool [R]: was it kept, or does it only fill up?"""
    slots: Tensor
    """int64 [R]: its place among B * C queries; B * C for one that fills up."""
    places: Tensor
    """int64 [B, C]: the place in its sequence of each query."""


def _picked(keep: Tensor) -> Picked:
    """keep: bool [B, T]."""
    (batch, length), flat = keep.shape, keep.flatten()
    kept, others = flat.nonzero().squeeze(-1), (~flat).nonzero().squeeze(-1)
    more = min(_rounded(len(kept), len(flat)) - len(kept), len(others))
    rows = torch.cat([kept, others[:more]])
    # as many columns as the sequence with most kept tokens needs
    columns = min(_rounded(max(1, int(keep.sum(-1).max())), length), length)
    slots = kept // length * columns + (keep.cumsum(-1) - 1).flatten()[kept]
    places = rows.new_zeros(batch * columns).index_copy(0, slots, kept % length).view(batch, columns)
    return Picked(rows, flat[rows], F.pad(slots, (0, more), value=batch * columns), places)


def _rounded(count: int, most: int) -> int:
    """`count`, or a little more: one of about SIZES numbers up to `most`."""
    step = max(1, most // SIZES)
    return -(-count // step) * step


def _product(x: Tensor, of: Linear) -> Tensor:
    assert isinstance(of.weight, Tensor)
    return F.linear(x, of.weight, of.bias)


def _mask(given: Tensor | None, places: Tensor, length: int, keys: Tensor) -> Tensor:
    """The rows of the layer's mask that belong to the queries, [B, 1, columns, K]. places: int64 [B, columns], each
    query's place in the pass; without a mask, a query sees the keys up to its own."""
    total = keys.shape[-2]
    if given is None:
        return torch.arange(total, device=places.device) <= (places + total - length)[:, None, :, None]
    batch = torch.arange(len(places), device=places.device)[:, None]
    return given[batch, :, places].transpose(1, 2)
