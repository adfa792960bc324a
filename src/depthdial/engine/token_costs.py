"""True cost of tokens from what a native pass says of its steps: `core.cost.exact_cost`, bit for bit (a budget that is
held goes by each of them)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from depthdial.core.cost import Ledger
from depthdial.core.program import END


class Costs:
    """rows: for each row of decisions, the steps that are decided as one by it."""

    def __init__(self, ledger: Ledger, rows: Sequence[Sequence[int]]):
        program, self._dense, self._head = ledger.program, ledger.dense, float(ledger.head)
        self.untouched = ledger.untouched
        self.walks = program.jumps
        """Does a token's cost depend on the way that it takes?"""
        routed, steps = set(program.routed), ledger.steps
        saved = [[steps[s].saved for s in row if s in routed] for row in rows]
        self._work = np.array([float(sum(each)) for each in saved])
        """Whole numbers, so that sums are exact in any order."""
        asked = sum(steps[s].look + steps[s].unit.total for s in routed)
        always = sum(work.unit.total for s, work in enumerate(steps) if s not in routed)
        self._least = self._head + always + asked - float(self._work.sum())
        row_of = {s: i for i, row in enumerate(rows) for s in row}
        before = np.concatenate(([0], np.cumsum([work.absent for work in steps]))).tolist()
        self._ways = []
        """Of each step: its row; where to and at what price, skipped and run; and which visit's bypass a skip takes."""
        for s, work in enumerate(steps):
            to = [min(program.after(s, ran), len(steps)) for ran in (False, True)]
            left = [float(before[there] - before[s + 1]) for there in to]
            prices = (work.look + work.absent + work.bypass + left[0], work.look + work.unit.total + left[1])
            self._ways.append((row_of[s], tuple(to), prices, program.visit_of[s] if work.bypass else END))

    def __call__(self, keep: np.ndarray, offsets: np.ndarray) -> list[float]:
        """keep: uint8 [rows, N] -> N numbers."""
        if self.walks:
            full = (offsets == np.inf).tolist()
            return [self.untouched if full[i] else self.of_one(column) for i, column in enumerate(keep.T)]
        return np.where(offsets == np.inf, self.untouched, (self._least + self._work @ keep) / self._dense).tolist()

    def of_one(self, keep: np.ndarray) -> float:
        """keep: uint8 [rows], of a token that does not run the untouched base."""
        if not self.walks:
            return (self._least + float(self._work @ keep)) / self._dense
        work, s, ran = self._head, 0, keep.tolist()
        while s < len(self._ways):
            row, to, prices, _ = self._ways[s]
            work, s = work + prices[ran[row]], to[ran[row]]
        return work / self._dense

    def bypassed(self, keep: np.ndarray) -> list[int]:
        """The visits whose bypass a token takes. keep: as of `of_one`."""
        found, s, ran = [], 0, keep.tolist()
        while s < len(self._ways):
            row, to, _, visit = self._ways[s]
            if not ran[row] and visit != END:
                found.append(visit)
            s = to[ran[row]]
        return found
