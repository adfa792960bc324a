"""At which offset of the dial each token of a text runs: where it is read one, and where it is written one that may
follow what the text has cost so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from depthdial.core.dial import Dials
from depthdial.core.hold import BLOCK, Hold


class Held:
    """The offsets of one text's written tokens: they stand for blocks of `BLOCK` tokens and follow from their costs."""

    def __init__(self, hold: Hold):
        self._hold, self._state = hold, hold.begin()
        self.offsets = [hold.offset(self._state)]
        """Of each block that may begin."""

    def see(self, costs: Sequence[float]) -> None:
        """costs: true costs of the written tokens that have run, from the first one on."""
        while len(costs) >= (done := len(self.offsets)) * BLOCK:
            self._state = self._hold.after(self._state, costs[(done - 1) * BLOCK : done * BLOCK])
            self.offsets.append(self._hold.offset(self._state))


def runs(dials: Dials, held: Held | None, prompt: int, start: int, end: int) -> Iterator[tuple[int, int, float]]:
    """The places start..end-1 of a text in parts of one offset each: (start, end, offset). prompt: how many tokens of
    the text are read. What is held must be known so far (`Held`)."""
    while start < end:
        if start < prompt:
            stop, offset = min(prompt, end), dials.reading
        elif held is None:
            stop, offset = end, dials.written
        else:
            block = (start - prompt) // BLOCK
            stop, offset = min(prompt + (block + 1) * BLOCK, end), held.offsets[block]
        yield start, stop, offset
        start = stop
