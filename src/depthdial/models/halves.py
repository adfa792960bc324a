"""Run the frozen layers below the first decision once, and the layers above as often as needed.

Distillation asks for the upper layers twice (teacher and student) and for the lower ones once, without gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.models.convert import layers_of
from depthdial.models.converted import converted_of


class Passed(nn.Module):
    """Stands where a layer has run already."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states


class Halves:
    """A converted model, cut below the layer of its program's first step that is not simply one of the base's layers;
    where there is none, below all."""

    def __init__(self, model: PreTrainedModel):
        self.decoder, layers = model.get_decoder(), list(layers_of(model))
        self._converted = converted_of(model)
        program = self._converted.program
        first = program.visit_of[program.first] if program.first < len(program.steps) else 0
        first = min(first, len(layers) - 1)  # visits after the last layer run with it
        self.first = first
        self._lower = nn.ModuleList([*layers[:first], *(Passed() for _ in layers[first:])])
        self._upper = nn.ModuleList([*(Passed() for _ in layers[:first]), *layers[first:]])

    @torch.no_grad()
    def lower(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """The input of the upper layers, [B, T, d]. input_ids: int64 [B, T]."""
        # no decision is made here
        with (
            self._converted.using(offset=math.inf, read=None),
            swapped(self.decoder, layers=self._lower, norm=nn.Identity()),
        ):
            return self.decoder(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state

    def upper(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        """The decoder's output (after its last norm), [B, T, d], from the input of the upper layers."""
        with swapped(self.decoder, layers=self._upper), as_it_is(self.decoder):
            return self.decoder(inputs_embeds=hidden, use_cache=False, **kwargs).last_hidden_state


@contextmanager
def as_it_is(decoder: nn.Module) -> Iterator[None]:
    """Some decoders multiply whatever they begin with, and the multiplier belongs to embeddings."""
    before = vars(decoder).get("embedding_multiplier")
    if before is not None:
        vars(decoder)["embedding_multiplier"] = 1.0
    try:
        yield
    finally:
        if before is not None:
            vars(decoder)["embedding_multiplier"] = before


@contextmanager
def swapped(decoder: nn.Module, **modules: nn.Module) -> Iterator[None]:
    """Other modules in the places of those of these names, until the block ends."""
    before = {name: decoder.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            decoder.set_submodule(name, module)
        yield
    finally:
        for name, module in before.items():
            decoder.set_submodule(name, module)
