"""The one word that methods and executors share: what a step does with each token.

This file is *not* about how a decision is made (methods) or carried out (`routed`, the engine).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """What one step does with each of N tokens. Law: `run` is 0 where skipped, `skip` is 0 where kept.

    Every paper's forward at a step is `base + run * (F(x) - base) + skip * bypass(x)`.
    """

    keep: Tensor
    """bool [N]: does the step run for this token?"""
    run: Tensor
    """float [N]: weight on the unit's update; carries the router's gradient."""
    skip: Tensor
    """float [N]: weight on the bypass."""
    score: Tensor | None = None
    """float [N]: the router's soft opinion in (0, 1), for losses and maps."""

    @classmethod
    def hard(cls, keep: Tensor, score: Tensor | None = None) -> Decision:
        """Weights 0 and 1 exactly: the form of every decision that no router made."""
        return cls(keep, keep.float(), (~keep).float(), score)

    def within(self, here: Tensor) -> Decision:
        """The same for the tokens that wait at the step, bool [N]; the others do nothing."""
        zero = torch.zeros_like(self.run)
        return Decision(
            self.keep & here, torch.where(here, self.run, zero), torch.where(here, self.skip, zero), self.score
        )

    def spread(self, rows: Tensor, count: int) -> Decision:
        """The same among all tokens of a pass, where it is of some of them; the others do nothing. rows: int64 [N]."""
        fields = (None if each is None else each.new_zeros(count).index_copy(0, rows, each) for each in self._fields)
        return Decision(*fields)  # pyright: ignore[reportArgumentType]

    def running(self, full: Tensor) -> Decision:
        """The same, but that the tokens `full`, bool [N], run as in the base."""
        one, zero = torch.ones_like(self.run), torch.zeros_like(self.skip)
        return Decision(
            self.keep | full, torch.where(full, one, self.run), torch.where(full, zero, self.skip), self.score
        )

    def __getitem__(self, index: Tensor) -> Decision:
        """Of some tokens. index: int64 [n] or bool [N]."""
        return Decision(*(None if field is None else field[index] for field in self._fields))  # pyright: ignore

    def shaped(self, rows: int, length: int) -> Decision:
        """Every field as [rows, length]."""
        fields = (None if field is None else field.view(rows, length) for field in self._fields)
        return Decision(*fields)  # pyright: ignore[reportArgumentType]

    def detached(self) -> Decision:
        """Without the graph of the pass that made it."""
        return Decision(*(None if field is None else field.detach() for field in self._fields))  # pyright: ignore

    @property
    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.keep, self.run, self.skip, self.score
