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

from depthdial.core.routed import Pass
from depthdial.models.converted import Converted

_ORDER = ("input_ids", "attention_mask", "position_ids", "past_key_values")
"""Of the decoders' arguments, where they come without names."""


PASS = "depthdial_pass"
"""The keyword under which a decoder hands the pass on to its layers, so that it is at hand wherever a layer runs, be it
in a thread that only runs it again for its gradient."""


class Opening:
    """A hook before a decoder's forward: begins its pass.

    whole: are whole layers routed? Raises ValueError where a pass asks for what those cannot give.
    """

    def __init__(self, converted: Converted, config: PretrainedConfig, whole: bool):
        self.converted, self.config, self.whole = converted, config, whole

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.whole and kwargs.get("output_hidden_states"):
            raise ValueError(
                "hidden states are recorded inside a layer, before its skip; hook model.get_decoder().layers instead"
            )
        inputs = {**dict(zip(_ORDER, args, strict=False)), **kwargs}
        ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
        like = inputs["inputs_embeds"] if ids is None else ids
        shape, converted = (like.shape[0], like.shape[1]), self.converted
        real = real_tokens(inputs.get("attention_mask"), cache, shape[1])
        if (head := head_work(self.config)) != converted.ledger.head:  # the vocabulary was resized
            converted.ledger = replace(converted.ledger, head=head)
        position = inputs.get("position_ids")
        if position is None:
            start = cache.get_seq_length() if isinstance(cache, Cache) else 0
            position = (torch.arange(shape[1], device=like.device) + start)[None]
        dials = converted.threads.dials
        settings = converted.settings if dials is None else dials.settings(position, shape[0])
        if settings.training is None and module.training:
            drawn = torch.randint(2**31, shape[:1]) if settings.key is None else settings.key
            settings = replace(settings, training=True, key=drawn.to(like.device))
        tokens = settings.tokens(position, ids, real, shape, like.device)
        running = Pass(converted.program, tokens, settings.dense)
        converted.threads.last = running
        return args, {**kwargs, PASS: running}


class Entering:
    """A hook before a layer's forward: takes the pass, which the layer itself does not know."""

    def __init__(self, converted: Converted, kind: str):
        self.converted, self.kind = converted, kind

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        running = kwargs.pop(PASS, None)
        if running is not None:
            self.converted.threads.running = running
            running.inputs[self.kind] = kwargs
        return args, kwargs


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
