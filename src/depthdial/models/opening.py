"""What is noted as a pass of a converted model opens: its size, which tokens are real, where they stand.

This file is *not* about what is decided then (`core.routed`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from depthdial.core.route import Route

_ORDER = ("input_ids", "attention_mask", "position_ids", "past_key_values")
"""Of the decoders' arguments, where they come without names."""


class Opening:
    """A hook before a decoder's forward: begins the route of its pass.

    whole: are whole layers routed? Raises ValueError where a pass asks for what those cannot give.
    """

    def __init__(self, route: Route, config: PretrainedConfig, whole: bool):
        self.route, self.config, self.whole = route, config, whole

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.whole and kwargs.get("output_hidden_states"):
            raise ValueError(
                "hidden states are recorded inside a layer, before its skip; hook model.get_decoder().layers instead"
            )
        told = {**dict(zip(_ORDER, args, strict=False)), **kwargs}
        tokens = told.get("input_ids")
        like = told["inputs_embeds"] if tokens is None else tokens
        shape, ledger = (like.shape[0], like.shape[1]), self.route.ledger
        mask = real_tokens(told.get("attention_mask"), told.get("past_key_values"), shape[1])
        if (head := head_work(self.config)) != ledger.head:  # the vocabulary was resized
            self.route.ledger = replace(ledger, head=head)
        self.route.begin(shape, mask, like.device, tokens)


class Placing:
    """A hook before a layer's forward, for units that are not told where their tokens stand."""

    def __init__(self, route: Route):
        self.route = route

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.route.positions = kwargs["position_ids"]


def head_work(config: PretrainedConfig) -> int:
    """Multiply-accumulates per token of the LM head."""
    return config.vocab_size * config.hidden_size


def real_tokens(mask: Any, cache: Any, length: int) -> Tensor | None:
    """bool [B, length]: which tokens of a pass are real; None where the mask does not say.

    mask: as a Hugging Face decoder takes it, [B, keys] or [B, 1, length, keys], for all keys or more (a static cache),
    or such masks by kind of layer. cache: holds the keys before this pass. A real token sees itself.
    """
    if isinstance(mask, dict):
        found = [each for each in (mask.get("full_attention"), *mask.values()) if each is not None]
        mask = found[0] if found else None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] < length:
        return None
    start, last = cache.get_seq_length() if isinstance(cache, Cache) else 0, mask.shape[-1] - length
    # a static cache counts on the device, and a window forgets its first keys
    start = start.clamp(max=last) if isinstance(start, Tensor) else min(start, last)
    at = start + torch.arange(length, device=mask.device)
    if mask.ndim == 2:
        return mask[:, at].bool()
    if mask.shape[-2] != length:
        return None
    own = mask[:, 0, torch.arange(length, device=mask.device), at]
    return own if own.dtype == torch.bool else own == 0
