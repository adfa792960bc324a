"""Measure a converted model on held-out rows, for the curve of the dial, and a base, for methods that ask of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.dial import Curve
from depthdial.core.method import Seen
from depthdial.core.tokens import Tokens, Trace
from depthdial.models.compare import HeadCompare
from depthdial.models.convert import Readout, head_of, layers_of
from depthdial.models.converted import converted_of
from depthdial.models.halves import Halves, Passed, swapped
from depthdial.models.head import shaping_of

POINTS = 26
"""Points of the dial's curve."""
Batch = dict[str, Tensor]
"""int64 [B, T] each: input_ids, position_ids, and labels, -100 where a token does not count. Where some tokens are read
by the untouched base, read, bool [B, T], says which."""


class Heldout:
    """Held-out rows of one model with the base's last hidden states: cost and KL at any offset.

    The layers below the first decision are run once. batches: any sizes, on the model's device. compile: fuse the
    arithmetic at the head, for a CPU and many rows.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], compile: bool = False):
        self.converted, self.halves, self.batches = converted_of(model), Halves(model), batches
        self.route, self.head = self.converted.route, head_compare(model, compile)
        self.lower = [self.halves.lower(b["input_ids"], position_ids=b["position_ids"]) for b in batches]
        self.teacher = [self.run(i, math.inf)[0] for i in range(len(batches))]
        """The base's hidden states after the last norm, [B, T, d] per batch."""

    @torch.no_grad()
    def run(self, index: int, offset: float | Tensor) -> tuple[Tensor, Tensor]:
        """One batch at an offset (one number, or one per row, fp32 [B]): hidden states after the last norm, [B, T, d],
        and true cost of each token, fp32 [B, T]. `self.route` shows the pass until the next run."""
        batch = self.batches[index]
        # a prompt that the base has read is nothing to blocks of the method's own: they read it themselves
        read_offset = None if self.converted.program.own else math.inf
        with self.converted.using(offset=offset, read=batch.get("read"), read_offset=read_offset):
            hidden = self.halves.upper(self.lower[index], position_ids=batch["position_ids"])
        return hidden, self.route.token_cost()

    @torch.no_grad()
    def measure(self, offset: float) -> tuple[float, float]:
        """Mean true cost and mean KL from the base (nats per token) at an offset, over tokens with a label."""
        cost = kl = count = 0.0
        for i, (batch, teacher) in enumerate(zip(self.batches, self.teacher, strict=True)):
            hidden, token_cost = self.run(i, offset)
            real = batch["labels"] != -100
            kl += float(self.head(hidden[real], teacher[real], batch["labels"][real]).kl.sum())
            cost += float(token_cost.to(real.device)[real].sum())
            count += float(real.sum())
        return cost / count, kl / count


def measure_curve(measure: Callable[[float], tuple[float, float]], points: int = POINTS, widest: float = 64.0) -> Curve:
    """The dial's curve between the offsets -widest and widest, with `points` spread evenly over *cost*.

    measure: offset -> (cost, KL). The widest gap in cost is halved again and again: however narrow the range of
    offsets in which the routers differ, it is found. Fewer points where no gap is left.
    """
    figures = {offset: measure(offset) for offset in (-widest, 0.0, widest)}
    while len(figures) < points:
        gap, width, a = max(
            (round(abs(figures[b][0] - figures[a][0]), 3), b - a, a) for a, b in itertools.pairwise(sorted(figures))
        )
        if gap < 0.005 or width < 1e-3:
            break
        figures[a + width / 2] = measure(a + width / 2)
    return Curve.fit([(offset, *each) for offset, each in figures.items()])


def measure_stops(measure: Callable[[float], tuple[float, float]], stops: Sequence[float]) -> Curve:
    """The curve of a dial that stands at one of some offsets; stops: at least two, rising."""
    step = (stops[-1] - stops[0]) / (len(stops) - 1)
    return Curve.fit([(offset, *measure(offset)) for offset in stops], step=step)


def curve_of(model: PreTrainedModel, measure: Callable[[float], tuple[float, float]]) -> Curve:
    """The dial's curve of a converted model: one point for each stop where the dial has such. measure: offset ->
    (cost, KL)."""
    converted = converted_of(model)
    stops = converted.method.stops(converted.program) or ()
    if len(stops) < 2 and converted.method.steady:
        stops = between(turning_points(model))
    return measure_stops(measure, stops) if len(stops) > 1 else measure_curve(measure)


def between(turns: Sequence[float]) -> list[float]:
    """Rising offsets between each two of those at which a decision turns, and one beyond each end."""
    edges = [turns[0] - 1, *turns, turns[-1] + 1] if turns else [-1.0, 1.0, 3.0]
    return [round((low + high) / 2, 4) for low, high in itertools.pairwise(edges)]


@torch.no_grad()
def turning_points(model: PreTrainedModel, widest: float = 64.0, apart: float = 1e-3) -> list[float]:
    """Rising offsets at which a step's decision turns, of a method whose decisions depend on nothing but the step and
    the dial (`Method.steady`); one of those that are closer than `apart`. Steps that never turn have none."""
    converted, embedding = converted_of(model), model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    method, program, device = converted.method, converted.program, embedding.device
    place = torch.zeros(65, dtype=torch.long, device=device)
    seen = Seen(torch.ones(65, embedding.shape[1], device=device))
    turns: list[float] = []
    for s in program.routed:
        low, high = -widest, widest
        while high - low > apart / 8:
            offsets = torch.linspace(low, high, 65, device=device)
            tokens, trace = Tokens(offsets, place, id=place, shape=(65, 1)), Trace(program)
            for each in (e for e in program.visits[program.visit_of[s]].steps if e <= s and e in converted.routed):
                trace.decisions[each] = method.decide(converted.units[each].parts, seen, each, tokens, trace)
            keep = trace.decisions[s].keep
            first = int(keep.long().argmax())
            if not first:  # it runs at all of them, or at none
                break
            low, high = offsets[first - 1 : first + 1].tolist()
        else:
            turns.append((low + high) / 2)
    return [turn for i, turn in enumerate(sorted(turns)) if not i or turn - sorted(turns)[i - 1] > apart]


class BaseProbe:
    """Implements `core.method.Probe` on a base, converted or not, over rows of text."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]):
        """batches: any sizes, on the model's device; tokens without a label do not count. Layers are ranked by the
        first: a greedy search runs the model once per layer tried, and 2k tokens rank them as 6k do."""
        self.batches, self._few = batches, batches[:1]
        self._decoder, self._layers = model.get_decoder(), layers_of(model)
        self._head, self._readout, self.depth = head_compare(model), Readout(model), len(self._layers)

    @torch.no_grad()
    def block_influence(self) -> list[float]:
        sums, count = torch.zeros(self.depth, dtype=torch.double), 0.0
        for batch in self._few:
            weight = (batch["labels"] != -100).float()
            count += float(weight.sum())
            alike: list[Tensor] = []
            hooks = [layer.register_forward_hook(_similarity(alike)) for layer in self._layers]
            try:
                self._run(batch)
            finally:
                for hook in hooks:
                    hook.remove()
            sums += torch.stack([(s * weight).sum() for s in alike]).double().cpu()
        return (1 - sums / count).tolist()

    @torch.no_grad()
    def divergence(self, dropped: Sequence[int]) -> float:
        left = nn.ModuleList(Passed() if i in dropped else layer for i, layer in enumerate(self._layers))
        kl = count = 0.0
        for batch, teacher in zip(self._few, self._teacher, strict=False):
            real = batch["labels"] != -100
            with swapped(self._decoder, layers=left):
                hidden = self._run(batch)
            kl += float(self._head(hidden[real], teacher[real], batch["labels"][real]).kl.sum())
            count += float(real.sum())
        return kl / count

    @torch.no_grad()
    def readouts(self, layers: Sequence[int], head_rows: int | None) -> tuple[Tensor, Tensor]:
        looks, right = [], []
        for batch, teacher in zip(self.batches, self._teacher, strict=True):
            real = batch["labels"] != -100
            best = self._head.logits(teacher[real]).argmax(-1)
            states: dict[int, Tensor] = {}
            hooks = [self._layers[i].register_forward_pre_hook(_input(states, i), with_kwargs=True) for i in layers]
            try:
                self._run(batch)
            finally:
                for hook in hooks:
                    hook.remove()
            logits = [self._readout(states[i][real]) for i in layers]
            likeliest = [(each[:, :head_rows].softmax(-1)).topk(2).values for each in logits]
            looks.append(torch.stack([torch.stack([top[:, 0], top[:, 0] - top[:, 1]], -1) for top in likeliest]))
            right.append(torch.stack([each.argmax(-1) == best for each in logits]))
        return torch.cat(looks, 1), torch.cat(right, 1)

    @cached_property
    def _teacher(self) -> list[Tensor]:
        """The base's hidden states after the last norm, [B, T, d] per batch."""
        with torch.no_grad():
            return [self._run(batch) for batch in self.batches]

    def _run(self, batch: Batch) -> Tensor:
        out = self._decoder(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        return out.last_hidden_state


def head_compare(model: PreTrainedModel, compile: bool = False) -> HeadCompare:
    """What compares two passes at a model's head."""
    return HeadCompare(head_of(model), shaping_of(model.config), compile)


def _similarity(into: list[Tensor]):
    """A forward hook that notes the cosine of a layer's input and output, fp32 [B, T]."""

    def hook(_layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        into.append(F.cosine_similarity(args[0].float(), out.float(), dim=-1))

    return hook


def _input(into: dict[int, Tensor], layer: int):
    """A forward pre-hook that notes a layer's input."""

    def hook(_layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        into[layer] = args[0] if args else kwargs["hidden_states"]

    return hook
