"""Measure a converted model on held-out rows: the curve of the dial, and what training-free methods ask of a base."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.dial import Curve
from depthdial.core.route import Route
from depthdial.methods import Static
from depthdial.models.compare import HeadCompare
from depthdial.models.convert import method_of, route_of, routed
from depthdial.models.halves import Halves

Batch = dict[str, Tensor]
"""int64 [B, T] each: input_ids, position_ids, and labels, -100 where a token does not count. Where some tokens are read
by the untouched base, read, bool [B, T], says which."""


class Heldout:
    """Held-out rows of one model with the base's last hidden states: cost and KL at any offset.

    The layers below the first routed one are run once. batches: any sizes, on the model's device. compile: fuse the
    arithmetic at the head, for a CPU and many rows.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], compile: bool = False):
        self.route: Route = model.route  # pyright: ignore[reportAttributeAccessIssue]
        first = min((site.layer for site in routed(model)), default=0)
        self.halves, self.batches = Halves(model, first), batches
        head, softcap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
        assert isinstance(head, nn.Module)
        self.head = HeadCompare(head, softcap, compile)
        self.lower = [self.halves.lower(b["input_ids"], position_ids=b["position_ids"]) for b in batches]
        self.teacher = [self.run(i, math.inf)[0] for i in range(len(batches))]
        """The base's hidden states after the last norm, [B, T, d] per batch."""

    @torch.no_grad()
    def run(self, index: int, offset: float | Tensor) -> tuple[Tensor, Tensor]:
        """One batch at an offset (one number, or one per row, fp32 [B]): hidden states after the last norm, [B, T, d],
        and true cost of each token, fp32 [B, T]. `self.route` holds the decisions until the next run."""
        route = self.route
        before = route.offset, route.read, route.read_offset
        route.offset, route.read, route.read_offset = offset, self.batches[index].get("read"), math.inf
        try:
            hidden = self.halves.upper(self.lower[index], position_ids=self.batches[index]["position_ids"])
            return hidden, route.token_cost()
        finally:
            route.offset, route.read, route.read_offset = before

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


def measure_curve(measure: Callable[[float], tuple[float, float]], points: int = 26, widest: float = 64.0) -> Curve:
    """The dial's curve between the offsets -widest and widest, with `points` spread evenly over *cost*.

    measure: offset -> (cost, KL). The widest gap in cost is halved again and again: however narrow the range of
    offsets in which the routers differ, it is found. Fewer points where no gap is left.
    """
    found = {offset: measure(offset) for offset in (-widest, 0.0, widest)}
    while len(found) < points:
        gap, width, a = max(
            (round(abs(found[b][0] - found[a][0]), 3), b - a, a) for a, b in itertools.pairwise(sorted(found))
        )
        if gap < 0.005 or width < 1e-3:
            break
        found[a + width / 2] = measure(a + width / 2)
    return Curve.fit([(offset, *figures) for offset, figures in found.items()])


def measure_steps(measure: Callable[[float], tuple[float, float]], turns: Sequence[float]) -> Curve:
    """The curve of a dial that acts in steps: a point between each two of the offsets at which a decision turns, and
    one beyond each end."""
    edges = [turns[0] - 1, *turns, turns[-1] + 1] if turns else [-1.0, 1.0, 3.0]
    between = [round((low + high) / 2, 4) for low, high in itertools.pairwise(edges)]
    step = (between[-1] - between[0]) / (len(between) - 1)
    return Curve.fit([(offset, *measure(offset)) for offset in between], step=step)


@torch.no_grad()
def turning_points(model: PreTrainedModel, widest: float = 64.0, apart: float = 1e-3) -> list[float]:
    """Rising offsets at which a unit's decision turns, of a method whose decisions depend on nothing but the layer and
    the dial (`Method.steps`); one of those that are closer than `apart`. Units that never turn have none."""
    method, sites, ledger = method_of(model), routed(model), route_of(model).ledger
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    found: list[float] = []
    for site in sorted(sites):
        low, high = -widest, widest
        while high - low > apart / 8:
            route = Route(ledger, torch.linspace(low, high, 65, device=embedding.device))
            route.begin((65, 1), None, embedding.device)
            route.positions = torch.zeros(65, 1, dtype=torch.long, device=embedding.device)
            x = torch.ones(65, 1, embedding.shape[1], device=embedding.device)
            for each in (one for one in sorted(sites) if one.layer == site.layer and one <= site):
                route.record(each, method.decide(sites[each].parts, x, each, route))
            keep = route.decisions[site].keep[:, 0]
            first = int(keep.long().argmax())
            if not first:  # it runs at all of them, or at none
                break
            assert isinstance(route.offset, Tensor)
            low, high = route.offset[first - 1 : first + 1].tolist()
        else:
            found.append((low + high) / 2)
    return [turn for i, turn in enumerate(sorted(found)) if not i or turn - sorted(found)[i - 1] > apart]


class BaseProbe:
    """Implements `core.method.Probe` on a converted model whose every layer is routed by a bare `Static`."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]):
        self.model, self.heldout = model, Heldout(model, batches)
        self.layers: nn.ModuleList = model.get_decoder().layers  # pyright: ignore[reportAttributeAccessIssue]
        self.depth = len(self.layers)

    @torch.no_grad()
    def block_influence(self) -> list[float]:
        sums, count = torch.zeros(self.depth, dtype=torch.double), 0.0
        for batch in self.heldout.batches:
            weight = (batch["labels"] != -100).float()
            count += float(weight.sum())
            alike: list[Tensor] = []
            hooks = [layer.register_forward_hook(_similarity(alike)) for layer in self.layers]
            try:
                self.heldout.route.offset = math.inf
                self.model.get_decoder()(
                    input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
                )
            finally:
                for hook in hooks:
                    hook.remove()
            sums += torch.stack([(s * weight).sum() for s in alike]).double().cpu()
        return (1 - sums / count).tolist()

    def divergence(self, dropped: Sequence[int]) -> float:
        rest = [i for i in range(self.depth) if i not in dropped]
        method = Static(order=(*dropped, *rest), count=len(dropped), adapter_ratio=0)
        for unit in routed(self.model).values():
            unit.method = method
        return self.heldout.measure(0.0)[1]


def _similarity(into: list[Tensor]):
    """A forward hook that notes the cosine of a layer's input and output, fp32 [B, T]."""

    def hook(_layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        into.append(F.cosine_similarity(args[0].float(), out.float(), dim=-1))

    return hook
