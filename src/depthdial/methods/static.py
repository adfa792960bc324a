"""The best fixed layers to drop, chosen by calibration: the baseline that shows whether routing *per token* pays.

Two ways to choose: ShortGPT's block influence (Men et al., 2024, arXiv 2403.03853) and a greedy search that drops, one
after the other, the layer whose absence costs least KL from the base. The layers are nested, so one dial serves all
budgets: offset +1 drops one layer fewer. A dropped layer pays for no K, no V and no router.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.layers import Adapter
from depthdial.core.lowered import Lowered, adapter_in
from depthdial.core.method import Dims, Method, Parts, Probe, Seen
from depthdial.core.program import Program, Step, plain
from depthdial.core.tokens import Tokens, Trace


@dataclass(frozen=True)
class Static(Method):
    """The first `count` layers of `order` never run; adapters, if any, stand in for them."""

    reads = frozenset()
    by_row = True
    example: ClassVar[Mapping[str, object]] = {"order": (3, 1, 4), "count": 2, "adapter_ratio": 4}

    order: tuple[int, ...] = ()
    """Layers in the order in which they are dropped; filled by `calibrate`."""
    count: int = 4
    """Layers dropped at offset 0."""
    selection: Literal["block_influence", "greedy_kl"] = "greedy_kl"
    length: int = 14
    """How many layers `calibrate` ranks, that is, the most that can be dropped."""
    adapter_ratio: int = 16
    """The adapter's width is d_ff / adapter_ratio; 0 is no adapter: a bare drop."""

    def __post_init__(self):
        object.__setattr__(self, "order", tuple(self.order))  # JSON gives lists
        if self.selection not in ("block_influence", "greedy_kl"):
            raise ValueError(f"selection must be 'block_influence' or 'greedy_kl', not {self.selection!r}")
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"order names a layer twice: {self.order}")

    def program(self, depth: int) -> Program:
        if any(not 0 <= layer < depth for layer in self.order):
            raise ValueError(f"order {self.order} does not fit a model of {depth} layers")
        return plain(depth, self.order, ("attn", "mlp"), absent="nothing")

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        if step.unit == "attn" or not self.adapter_ratio:
            return {}
        return {"adapter": Adapter(dims.hidden, max(1, dims.intermediate // self.adapter_ratio))}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        rank = self.order.index(trace.program.steps[s].block)
        logit = torch.full_like(tokens.offset, rank - self.count + 0.5)
        return Decision.hard(tokens.shifted(logit) > 0)

    def keeps(self, program: Program, tokens: Tokens) -> Tensor:
        blocks = [visit.block for visit in program.visits if program.steps[visit.steps[0]].routed != "no"]
        rank = torch.tensor([self.order.index(block) for block in blocks], device=tokens.offset.device)
        return (rank - self.count + 0.5)[:, None] + tokens.offset > 0

    def stops(self, program: Program) -> Sequence[float]:
        return [self.count - dropped for dropped in range(len(self.order), -1, -1)]

    def bypass(self, parts: Parts, x: Tensor, s: int) -> Tensor | None:
        return parts["adapter"](x) if "adapter" in parts else None

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        return Lowered(None, bypass=adapter_in(parts))

    def calibrate(self, probe: Probe, report: Callable[[str], None] = lambda _: None) -> Static:
        if self.order:
            return self
        length = min(self.length, probe.depth - 1)
        if self.selection == "block_influence":
            influence = probe.block_influence()
            order = sorted(range(probe.depth), key=lambda layer: influence[layer])[:length]
            return replace(self, order=tuple(order))
        return replace(self, order=tuple(layer for layer, _ in nested(probe.depth, length, probe.divergence, report)))


def nested(
    depth: int,
    length: int,
    divergence: Callable[[Sequence[int]], float],
    report: Callable[[str], None] = lambda _: None,
) -> list[tuple[int, float]]:
    """`length` layers of `depth` in the order in which their absence costs least beside those before, and what they
    cost together. divergence: of dropped layers, the one that is tried last."""
    order: list[int] = []
    costs: list[float] = []
    while len(order) < length:
        trials = {k: divergence([*order, k]) for k in range(depth) if k not in order}
        best = min(trials, key=trials.__getitem__)
        order.append(best)
        costs.append(trials[best])
        report(f"drop {len(order)}: layer {best}, KL {trials[best]:.4f} nats/token")
    return list(zip(order, costs, strict=True))
