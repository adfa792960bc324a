"""Skipped tokens leave no key at a layer (absent "nothing"): hooks that hide them from the layer's attention.

Which keys of earlier passes are hidden is remembered where a cache is cut, sorted and shared together with them: in the
cache itself, as keys and values that are zero throughout. No real key is. Positions stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from depthdial.core.routed import Pass

_HOLES = "depthdial_holes"
"""Set on the layer of a cache that lacks keys, so that the others need not be searched."""


class Evicting:
    """Hooks on a decoder layer, or its attention, in which no token then sees the keys of tokens that skip it.

    The decision of this pass must stand in its trace before these hooks run: register them after those that make it.
    Works with the masks of Hugging Face's "sdpa" and "eager" attention and with growing caches; raises ValueError for
    others, where there is a token that would ask for what others have not left. index: the layer's, in a cache.
    """

    def __init__(self, unit: nn.Module, s: int, index: int, passing: Callable[[], Pass], attention: str):
        self.s, self._index, self._passing, self._attention = s, index, passing, attention
        self._hooks = (
            unit.register_forward_pre_hook(self._hide, with_kwargs=True),
            unit.register_forward_hook(self._blank, with_kwargs=True),
        )

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self) -> Tensor:
        """bool [B, T]"""
        running = self._passing()
        ran, shape = running.trace.ran(self.s), running.tokens.shape
        assert shape is not None
        return torch.ones_like(running.tokens.full).view(shape) if ran is None else ran.view(shape)

    def _hide(
        self, _unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not _grows(kwargs.get("past_key_values")):
            return None
        keep = self._keep()
        cached = _layer_of(kwargs.get("past_key_values"), self._index)
        # [B, S], of all keys of this pass; in a row in which nobody runs the layer nobody looks
        gone = torch.cat([_evicted(cached, keep), ~keep], dim=1) & keep.any(1, keepdim=True)
        if not gone.any():  # without a hole, the layer is called as ever: keep-all is the base bit for bit
            return None
        if self._attention not in ("sdpa", "eager"):
            raise ValueError(
                f"{self._attention} attention cannot leave out the keys of skipped tokens; "
                "load the model with attn_implementation='sdpa'"
            )
        like = args[0] if args else kwargs["hidden_states"]
        return args, {**kwargs, "attention_mask": _without(kwargs.get("attention_mask"), gone, like)}

    def _blank(self, _unit: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any) -> None:
        keep = self._keep()
        if _grows(kwargs.get("past_key_values")) and not keep.all():
            _evict(_layer_of(kwargs.get("past_key_values"), self._index), keep)


def _grows(cache: Any) -> bool:
    """Is it none, or one of Hugging Face's? Training's own (`continuation`) holds what the base has read, and goes on
    from there with rows alone that keep their way: nobody looks for what they have not left."""
    return cache is None or isinstance(cache, Cache)


def _layer_of(cache: Any, index: int) -> DynamicLayer | None:
    """The layer's part of a Hugging Face cache; None where nothing is in it yet."""
    if cache is None or index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    if not isinstance(layer, DynamicLayer):
        raise ValueError("tokens that leave no key need a growing cache; use the default one (DynamicCache)")
    return layer if layer.is_initialized else None


def _evicted(cached: DynamicLayer | None, keep: Tensor) -> Tensor:
    """bool [B, cached]: the places of the cache that hold no key."""
    if cached is None or cached.keys is None or not cached.keys.numel():
        return keep.new_zeros(keep.shape[0], 0)
    if not vars(cached).get(_HOLES):
        return keep.new_zeros(keep.shape[0], cached.keys.shape[-2])
    return (cached.keys == 0).all(-1).all(1)


def _evict(cached: DynamicLayer | None, keep: Tensor) -> None:
    """Blank what this pass has written for tokens that skip the layer; keep: bool [B, T]."""
    if cached is None or cached.keys is None or cached.values is None:
        return
    vars(cached)[_HOLES] = True
    count = min(keep.shape[1], cached.keys.shape[-2])  # a sliding layer keeps the last ones only
    blank = torch.zeros_like(cached.keys[:, 0, :, 0], dtype=torch.bool)
    blank[:, blank.shape[1] - count :] = ~keep[:, keep.shape[1] - count :]
    cached.keys = cached.keys.masked_fill(blank[:, None, :, None], 0)
    cached.values = cached.values.masked_fill(blank[:, None, :, None], 0)


def _without(mask: Tensor | None, gone: Tensor, x: Tensor) -> Tensor:
    """The layer's mask [B, 1, T, S] without the keys `gone`, bool [B, S]; a token always sees itself, so that no row is
    empty: what a skipped token gets from attention is dropped anyway. mask: bool (True sees), float (added), or None
    (causal)."""
    queries, keys = x.shape[1], gone.shape[1]
    own = torch.ones(queries, keys, dtype=torch.bool, device=x.device).tril(keys - queries)
    own, causal = own & own.triu(keys - queries), own
    seen = (~gone)[:, None, None] | own
    if mask is None:
        return causal & seen
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-1] != keys:
        raise ValueError("tokens that leave no key need a 4-d mask; load with attn_implementation 'sdpa' or 'eager'")
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
