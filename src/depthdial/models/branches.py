"""All ways off the base in one pass, of a program in which tokens can only leave it, as they are or by blocks of the
method's own.

Then nothing that is decided changes the base below an exit: one untouched pass is the teacher of all exits, and shows
each of them its input. Training by rows that take one exit each would run the base anew for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.method import Seen
from depthdial.core.routed import Pass
from depthdial.core.tokens import Tokens
from depthdial.models.convert import layers_of
from depthdial.models.converted import Converted, converted_of
from depthdial.models.extra import called
from depthdial.models.halves import Halves


def branches_of(model: PreTrainedModel, halves: Halves) -> Branches | Exits | None:
    """The exits of a converted model, where they are all there is to decide and the dial alone chooses among them."""
    converted = converted_of(model)
    stops = converted.method.stops(converted.program)
    if not converted.method.steady or stops is None:
        return None
    if converted.program.branches:
        return Branches(model, halves, stops)
    return Exits(model, halves, stops) if converted.program.exits else None


class Branches:
    """One pass for all exits; see `Program.branches`. stops: offsets of the dial, each exit at one of them."""

    def __init__(self, model: PreTrainedModel, halves: Halves, stops: Sequence[float]):
        self.converted, self.halves = converted_of(model), halves
        program, layers = self.converted.program, layers_of(model)
        at_stops = one_at_each(self.converted, stops).trace.decisions
        first = [int(at_stops[s].keep.long().argmax()) for s in program.branches]
        self.offsets = [stops[i] for i in first]
        self.each = one_at_each(self.converted, self.offsets)
        """A pass of as many tokens as there are exits, each by its own."""
        self._layers = [layers[program.own[-1 - program.steps[s].block].place] for s in program.branches]

    def run(self, lower: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """After the last norm: the untouched base, [B, T, d], without gradient, and all exits, [B, exits, T, d].

        lower: [B, T, d], as `Halves.lower` gives it; position_ids: int64 [B, T].
        """
        inputs: dict[int, tuple[Tensor, dict[str, Any]]] = {}
        hooks = [
            layer.register_forward_pre_hook(_Noting(inputs, i), with_kwargs=True)
            for i, layer in enumerate(self._layers)
        ]
        try:
            with torch.no_grad(), self.converted.using(offset=math.inf, read=None):
                teacher = self.halves.upper(lower, position_ids=position_ids)
        finally:
            for hook in hooks:
                hook.remove()
        norm = self.halves.decoder.get_submodule("norm")
        return teacher, torch.stack([norm(self._left(i, *inputs[i])) for i in range(len(hooks))], 1)

    @property
    def emphasis(self) -> Tensor:
        """Of each exit in the loss, fp32 [exits], 1 on the mean."""
        return torch.ones(len(self.offsets))

    def _left(self, exit: int, x: Tensor, how: dict[str, Any]) -> Tensor:
        """What leaves by an exit, [B, T, d], of all tokens. how: what the layer behind it is called with beside x."""
        program, tokens = self.converted.program, self.converted.route.last.tokens
        offset = torch.full_like(tokens.offset, self.offsets[exit])
        running, s = Pass(program, replace(tokens, offset=offset, training=True)), program.branches[exit]
        running.at = torch.full_like(tokens.position, s)
        out = called(self.converted, self.converted.own[-1 - program.steps[s].block], x, how, running)
        assert running.trace.decisions[s].keep.all(), "at its stop of the dial, each token takes the exit"
        return out


EARLY = 0.1
"""Of an early exit in the loss, beside 1 of the last: more costs the last one (Relaxed Recursive Transformers)."""


class Exits:
    """One pass for all exits; see `Program.exits`: what leaves is the stream as it stands, and the last exit is the
    untouched base, which learns with the others. stops: offsets of the dial, each exit at one of them."""

    def __init__(self, model: PreTrainedModel, halves: Halves, stops: Sequence[float]):
        self.converted, self.halves = converted_of(model), halves
        self.each = one_at_each(self.converted, stops)
        """A pass of as many tokens as there are exits, each by its own."""
        self.emphasis = torch.tensor([EARLY] * (len(stops) - 1) + [1.0])
        """Of each exit in the loss, fp32 [exits], 1 on the mean."""
        self.emphasis /= self.emphasis.mean()

    def run(self, lower: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """After the last norm: the last exit without its gradient, [B, T, d], and all of them, [B, exits, T, d].

        lower: [B, T, d], as `Halves.lower` gives it; position_ids: int64 [B, T].
        """
        inputs: dict[int, tuple[Tensor, dict[str, Any]]] = {}
        hooks = [
            self.converted.units[s].unit.register_forward_pre_hook(_Noting(inputs, s), with_kwargs=True)
            for s in self.converted.program.exits
        ]
        try:
            with self.converted.using(offset=math.inf, read=None, training=True):
                last = self.halves.upper(lower, position_ids=position_ids)
        finally:
            for hook in hooks:
                hook.remove()
        norm = self.halves.decoder.get_submodule("norm")
        return last.detach(), torch.stack([*(norm(inputs[s][0]) for s in self.converted.program.exits), last], 1)


def one_at_each(converted: Converted, offsets: Sequence[float]) -> Pass:
    """The pass of one token at each of some offsets, of a method whose decisions depend on the dial alone."""
    program, count = converted.program, len(offsets)
    running = Pass(program, Tokens(torch.tensor(offsets).float(), torch.zeros(count, dtype=torch.int64)))
    for s in range(program.first, len(program.steps)):
        here, ran = running.here(s), None
        if s in converted.routed:
            seen = Seen(torch.ones(count, 1))
            decision = converted.method.decide(converted.units[s].parts, seen, s, running.tokens, running.trace)
            decision = decision if here is None else decision.within(here)
            running.record(s, decision)
            ran = decision.keep
        running.move(s, ran)
    return running


class _Noting:
    """A forward pre-hook that notes what a layer is called with."""

    def __init__(self, into: dict[int, tuple[Tensor, dict[str, Any]]], index: int):
        self.into, self.index = into, index

    def __call__(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        how = dict(kwargs)
        self.into[self.index] = (args[0] if args else how.pop("hidden_states"), how)
