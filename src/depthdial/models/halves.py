"""Run the frozen layers below the first routed one once, and the layers above as often as needed.

Distillation asks for the upper layers twice (teacher and student) and for the lower ones once, without gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.models.convert import layers_of


class Pass(nn.Module):
    """Stands where a layer has run already."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states


class Halves:
    """A converted model, cut below its first routed layer."""

    def __init__(self, model: PreTrainedModel, first: int):
        self.decoder = model.get_decoder()
        self.first = first
        layers = list(layers_of(model))
        self._lower = nn.ModuleList([*layers[:first], *(Pass() for _ in layers[first:])])
        self._upper = nn.ModuleList([*(Pass() for _ in layers[:first]), *layers[first:]])

    @torch.no_grad()
    def lower(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """The input of the first routed layer, [B, T, d]. input_ids: int64 [B, T]."""
        with self._swapped(layers=self._lower, norm=nn.Identity()):
            return self.decoder(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state

    def upper(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        """The decoder's output (after its last norm), [B, T, d], from the input of the first routed layer."""
        with self._swapped(layers=self._upper):
            return self.decoder(inputs_embeds=hidden, use_cache=False, **kwargs).last_hidden_state

    @contextmanager
    def _swapped(self, **modules: nn.Module) -> Iterator[None]:
        before = {name: self.decoder.get_submodule(name) for name in modules}
        try:
            for name, module in modules.items():
                self.decoder.set_submodule(name, module)
            yield
        finally:
            for name, module in before.items():
                self.decoder.set_submodule(name, module)
