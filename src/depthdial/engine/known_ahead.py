"""The decisions of a method that looks at nothing which the model computes: made before a pass, for all its steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from depthdial.core.method import Seen
from depthdial.core.tokens import Tokens, Trace
from depthdial.engine.batch import Batch
from depthdial.engine.runner import TorchRunner

REMEMBERED = 4096
"""Places of the dial whose decisions are remembered."""


class GivenTable:
    """rows: for each row of decisions, the steps that are decided as one by it."""

    def __init__(self, plain: TorchRunner, rows: Sequence[Sequence[int]]):
        self._method, self._program, self._parts, self._count = plain.method, plain.program, plain.parts, len(rows)
        self._asked = [(i, row[0]) for i, row in enumerate(rows) if row[0] in plain.parts]
        self._known: dict[float, np.ndarray] = {}

    def fill(self, into: np.ndarray, batch: Batch) -> None:
        """into: uint8 [rows, N], 1 where the step runs."""
        tokens = batch.tokens
        if not self._method.steady:
            into[:] = self._keeps(tokens)
            return
        for i, offset in enumerate(tokens.offset.tolist()):  # what depends on nothing else is remembered
            if offset not in self._known:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[offset] = self._keeps(tokens[torch.tensor([i])])[:, 0]
            into[:, i] = self._known[offset]

    @torch.no_grad()
    def _keeps(self, tokens: Tokens) -> np.ndarray:
        """uint8 [rows, N]"""
        keep = torch.ones(self._count, tokens.count, dtype=torch.uint8)
        if (found := self._method.keeps(self._program, tokens)) is not None:
            keep[[row for row, _ in self._asked]] = found.cpu().to(torch.uint8)
            return keep.numpy()
        seen, trace = Seen(torch.zeros(tokens.count, 1, device=tokens.offset.device)), Trace(self._program)
        for row, s in self._asked:
            trace.decisions[s] = self._method.decide(self._parts[s], seen, s, tokens, trace)
            keep[row] = trace.decisions[s].keep
        return keep.numpy()
