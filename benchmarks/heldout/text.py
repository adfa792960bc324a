"""Quality on held-out text: every token's cross-entropy, KL from the base, cost and layers, in one pass per setting.

A *pass* is the work done on the token at place t; it predicts the token at t + 1. All figures of a pass stand together:
what it cost, how many layers it ran, and how well it predicted. Passes whose next token carries no label are not
counted: those that end a document, and whatever the caller leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from depthdial.evaluate.equal_cost import Knob, KnobMix
from depthdial.models.calibration import Batch, Heldout
from depthdial.models.compare import HeadCompare
from heldout.scores import Scores, Summary
from heldout.search import CostSearch


class Seen(NamedTuple):
    """What a model did with one batch."""

    hidden: Tensor
    """[B, T, d] after the last norm."""
    cost: Tensor
    """fp32 [B, T]: true cost of each token's pass."""
    layers: Tensor
    """[B, T]: layers run in it; NaN where that is not known."""


class Run(Protocol):
    """A model under test: batch number and dial in, `Seen` out."""

    def __call__(self, index: int, knob: Knob) -> Seen: ...


class PluginRun:
    """A converted model as a `Run`. Random routes are drawn anew for each row: a baseline is a mean over draws."""

    def __init__(self, heldout: Heldout):
        self.heldout, self.route = heldout, heldout.route
        sizes = torch.tensor([len(b["input_ids"]) for b in heldout.batches])
        self._first = (sizes.cumsum(0) - sizes).tolist()

    def __call__(self, index: int, knob: Knob) -> Seen:
        ids = self.heldout.batches[index]["input_ids"]
        rows = torch.arange(len(ids), device=ids.device) + self._first[index]
        with self.heldout.converted.using(key=rows + 1):
            hidden, cost = self.heldout.run(index, knob.offsets(rows) if isinstance(knob, KnobMix) else knob)
        return Seen(hidden, cost, self.route.layers_used)


def counted(batch: Batch) -> Tensor:
    """Which passes are scored, bool [B, T]: the next token carries a label and belongs to the same document."""
    follows = (batch["labels"][:, 1:] != -100) & (batch["position_ids"][:, 1:] > 0)
    return torch.cat([follows, torch.zeros_like(follows[:, :1])], 1)


def of_pass(batch: Batch, values: Tensor) -> Tensor:
    """`values` [B, T] of the tokens that scored passes read, [N] on the CPU."""
    return values.cpu()[counted(batch).cpu()]


def of_prediction(batch: Batch, values: Tensor) -> Tensor:
    """`values` [B, T] of the tokens that scored passes predicted, [N] on the CPU."""
    return values.roll(-1, 1).cpu()[counted(batch).cpu()]


class HeldoutText:
    """Rows of held-out text with the base's hidden states, against which any `Run` of the same rows is scored.

    batches: rows of packed text. teacher: the base's hidden states after the last norm, [B, T, d] per batch.
    groups: by name, bool [B, T] per batch: does the *predicted* token belong to the group? `answers`, for example.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        teacher: Sequence[Tensor],
        head: HeadCompare,
        groups: Mapping[str, Sequence[Tensor]] | None = None,
    ):
        self.batches, self.teacher, self.head = batches, teacher, head
        self.groups = {
            name: torch.cat([of_prediction(b, m) for b, m in zip(batches, masks, strict=True)])
            for name, masks in (groups or {}).items()
        }

    @torch.no_grad()
    def score(self, run: Run, knob: Knob, watch: Callable[[int], None] = lambda _: None) -> Scores:
        """One pass over all rows. watch: told the batch number after each batch, while its route is still there."""
        columns: list[tuple[Tensor, ...]] = []
        first = 0
        for i, (batch, teacher) in enumerate(zip(self.batches, self.teacher, strict=True)):
            seen, real = run(i, knob), counted(batch)
            target = batch["labels"].roll(-1, 1)[real]
            numbers = torch.arange(len(real)) + first
            rows = numbers[:, None].expand(real.shape)
            columns.append(
                (
                    *(x.cpu() for x in self.head(seen.hidden[real], teacher[real], target)),
                    of_pass(batch, seen.cost),
                    of_pass(batch, seen.layers),
                    of_pass(batch, rows),
                )
            )
            first += len(real)
            watch(i)
        return Scores(*(torch.cat(column) for column in zip(*columns, strict=True)))

    @torch.no_grad()
    def mean_cost(self, run: Run, knob: Knob, every: int = 1) -> float:
        """Mean true cost over every `every`th batch: as `score`, without the work at the head."""
        chosen = range(0, len(self.batches), every)
        costs = torch.cat([of_pass(self.batches[i], run(i, knob).cost) for i in chosen])
        return float(costs.double().mean())

    def summaries(self, scores: Scores) -> dict[str, Summary]:
        """By group, "all" first."""
        return {"all": scores.summary()} | {name: scores.summary(where) for name, where in self.groups.items()}

    def search(self, run: Run, resolution: float = 2**-10, every: int = 4) -> CostSearch:
        """A search for settings by cost, on every `every`th batch."""
        return CostSearch(lambda offset: self.mean_cost(run, offset, every), resolution)

    def at_cost(
        self, run: Run, cost: float, search: Callable[[float], Knob], tolerance: float = 0.005, tries: int = 3
    ) -> tuple[Knob, Scores]:
        """The setting that meets a true cost on the whole text, and its scores.

        search: cost -> setting, from a part of the text; what it misses on the whole is corrected, up to `tries` times,
        and the nearest is returned.
        """
        aim, best = cost, None
        for _ in range(tries):
            try:
                knob = search(aim)
            except ValueError:
                if best is None:
                    raise
                break  # the correction asks for more than the dial has
            scores = self.score(run, knob)
            miss = float(scores.cost.double().mean()) - cost
            if best is None or abs(miss) < best[0]:
                best = abs(miss), knob, scores
            if abs(miss) <= tolerance:
                break
            aim -= miss
        assert best is not None
        return best[1], best[2]


def offset_for_cost(heldout: Heldout, cost: float, resolution: float = 2**-10, tolerance: float = 0.001) -> Knob:
    """The dial of a converted model for a mean true cost over all of `heldout`; see `CostSearch`."""
    run = PluginRun(heldout)
    text = HeldoutText(heldout.batches, heldout.teacher, heldout.head)
    return text.search(run, resolution, every=1)(cost, tolerance)
