"""Hold the true cost at a requested budget while routers learn which tokens and layers are worth it.

Two things are kept apart. The *offset curve* decides how much runs: one logit offset per budget, nudged after every
optimizer step so that each row's true cost meets the budget drawn for it. The *price* keeps the routers comparing: a
cost per unit of gate equal to the mean benefit at the margin, so that the mean logit has no drift and only differences
between tokens and layers are learned. A multiplier on the mean gate alone does both badly: all tokens of a layer cross
the threshold together (docs/log.md).

Everything is a buffer, so checkpoints resume it exactly; updates happen once per optimizer step, from sums, so that
accumulation over small batches equals one large batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor, nn

from depthdial.core.tokens import Tokens, Trace
from depthdial.train import processes

NODES = 9
RAMP = 0.4
"""Share of training over which the range of budgets opens."""


class BudgetControl(nn.Module):
    """Offsets for budgets between `low` and `high`, and the price of a gate.

    low, high: the range of true costs that rows are trained at. floor: the lowest cost the method can reach.
    start, spread: mean and standard deviation of the gates' logits before training. offsets: known offsets for the
    grid's budgets, for methods without routers and for routers that have learned before. ramp: share of training
    over which the range of budgets opens.
    """

    grid: Tensor
    offsets: Tensor
    price: Tensor
    spread: Tensor
    _drift: Tensor
    _slack: Tensor
    _error: Tensor
    _weight: Tensor
    _moment: Tensor

    def __init__(
        self,
        low: float,
        high: float,
        floor: float,
        start: float = 0.0,
        spread: float = 1.0,
        offsets: Callable[[Tensor], Tensor] | None = None,
        ramp: float = RAMP,
    ):
        super().__init__()
        if not floor < low <= high <= 1.0:
            raise ValueError(
                f"budgets {low:.3f} to {high:.3f} cannot be trained: this method's floor on this model is {floor:.3f}; "
                "ask for more, or route more layers"
            )
        self.floor, self.ramp = floor, ramp
        self.register_buffer("grid", torch.linspace(low, max(high, low + 1e-3), NODES))
        share = ((self.grid - floor) / (1 - floor)).clamp(0.01, 0.99)
        z = torch.tensor([NormalDist().inv_cdf(float(s)) for s in share])
        self.register_buffer("offsets", spread * z - start if offsets is None else offsets(self.grid))
        self.register_buffer("price", torch.zeros(()))
        self.register_buffer("spread", torch.tensor(spread))
        sums = {"_drift": (), "_slack": (), "_error": (NODES,), "_weight": (NODES,), "_moment": (3,)}
        for name, size in sums.items():
            self.register_buffer(name, torch.zeros(size))

    def offset(self, budget: Tensor) -> Tensor:
        """Logit offset for each row's budget, fp32 [B]: linear between the nodes of the grid."""
        return (self._shares(budget) * self.offsets).sum(-1)

    def draw(self, keys: Tensor, progress: float, copies: int = 1) -> Tensor:
        """Budgets for each row from its key, fp32 [B * copies], those of one row spread evenly over the range.
        The range opens downwards over the first part of training: adapters must learn before much is skipped."""
        share = (keys * 0x2545F491 % 0x7FFFFFFF).double() / 0x7FFFFFFF
        share = ((share[:, None] + torch.arange(copies, device=keys.device) / copies) % 1.0).flatten()
        reach = min(1.0, 0.1 + 0.9 * progress / self.ramp) if self.ramp else 1.0
        return (self.grid[-1] - share * reach * (self.grid[-1] - self.grid[0])).float()

    def charge(self, tokens: Tokens, trace: Trace, budget: Tensor, cost: Tensor, weight: Tensor) -> Tensor:
        """The price of the gates of one pass, summed over tokens; notes what the next `step` needs.

        tokens, trace: of N = B x T tokens; budget, cost: fp32 [B]; weight: fp32 [B, T], 1 at tokens that count.
        """
        shares = self._shares(budget)
        self._error += ((cost - budget)[:, None] * shares).sum(0)
        self._weight += shares.sum(0)
        # attn and mlp may share one
        gates = {id(decision.score): (s, decision.score) for s, decision in trace.decisions.items()}
        price = cost.new_zeros(())
        for s, score in gates.values():
            if score is None or not score.requires_grad:
                continue
            here = weight.flatten()
            if s in trace.here:  # who has left is asked nothing
                here = here * trace.here[s]
            slope = (score * (1 - score)).detach() * here
            self._slack += slope.sum()
            score.register_hook(partial(self._note_drift, slope))
            logit = torch.logit(score.detach(), 1e-6) - tokens.offset
            self._moment += torch.stack([here.sum(), (logit * here).sum(), (logit.square() * here).sum()])
            price = price + (score * here).sum()
        return self.price * price

    def step(self, tokens: float, price_rate: float = 0.1, offset_rate: float = 1.5) -> None:
        """Once per optimizer step. tokens: what the loss was divided by, over all processes."""
        processes.total([self._drift, self._slack, self._error, self._weight, self._moment])
        # the Trainer multiplies each process's loss by their number, as gradients are averaged over processes
        self._drift /= processes.world()
        count, total, square = self._moment
        if count > 0:  # routers learn; without them the offsets were exact from the start
            spread = (square / count - (total / count).square()).clamp_min(1e-4).sqrt()
            self.spread.lerp_(spread, 0.1)
            move = offset_rate * self.spread * (self._error / self._weight.clamp_min(1)) / (1 - self.floor)
            self.offsets -= move
            self.offsets.copy_(self.offsets.cummax(0).values)  # more budget never means a lower offset
        if self._slack > 0:
            self.price -= price_rate * self._drift * tokens / self._slack
        for buffer in (self._drift, self._slack, self._error, self._weight, self._moment):
            buffer.zero_()

    def _note_drift(self, slope: Tensor, grad: Tensor) -> None:
        self._drift += (grad * slope).sum()

    def _shares(self, budget: Tensor) -> Tensor:
        place = (budget[:, None] - self.grid[0]) / (self.grid[1] - self.grid[0])
        return (1 - (place.clamp(0, NODES - 1) - torch.arange(NODES, device=budget.device)).abs()).clamp_min(0)
