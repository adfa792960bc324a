"""What drafts are worth: how often they were right, and what passes take, both measured as the engine goes.

Neither can change a text, which is the base's own whatever is drafted; they only say whether drafting pays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

KEPT, FORGOTTEN = 8, 512
"""Samples of a kind of pass that count; passes after which a kind counts as never measured."""
SLOPE = 0.12
"""Guess: share by which each further token makes a pass longer, where that was not measured. SmolLM2-135M in bf16 on
two cores takes 1.1 of the time of one token for 2, 1.35 for 4, 2.2 for 8 and 3.8 for 16."""


class Rates:
    """How often drafts of a kind are accepted: recent ones count most, and the first few are measured against a prior.

    prior: the rate to expect of a kind; another `Rates`' own `rate`, where that has seen more. told: hears of every
    outcome, too. memory: outcomes that count; trust: outcomes that weigh as much as the prior.
    """

    def __init__(
        self,
        prior: Callable[[Hashable], float],
        told: Rates | None = None,
        memory: int = 16,
        trust: float = 4.0,
    ):
        self._prior, self._told, self._keep, self._trust = prior, told, 1 - 1 / memory, trust
        self._seen: dict[Hashable, tuple[float, float]] = {}

    def rate(self, kind: Hashable) -> float:
        """The chance that a draft of this kind is right, if those before it are."""
        hits, tries = self._seen.get(kind, (0.0, 0.0))
        return (hits + self._trust * self._prior(kind)) / (tries + self._trust)

    def note(self, kind: Hashable, right: bool) -> None:
        """One outcome."""
        hits, tries = self._seen.get(kind, (0.0, 0.0))
        self._seen[kind] = (hits * self._keep + right, tries * self._keep + 1)
        if self._told is not None:
            self._told.note(kind, right)


class Prices:
    """Seconds of passes of the base and of drafts, by how many tokens they have.

    What was not measured lately is guessed from the nearest that was; without any, a pass of one token is 1. The
    fastest of a few samples counts: whatever else the machine does only ever adds time. slope: see SLOPE.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, slope: float = SLOPE):
        self.clock, self._slope = clock, slope
        self._taken: dict[tuple[str, int], deque[float]] = {}
        self._when: dict[tuple[str, int], int] = {}
        self._fastest: dict[str, dict[int, float]] = {"base": {}, "draft": {}}
        self._passes = 0

    def note(self, kind: str, tokens: int, seconds: float) -> None:
        """A pass of a kind ("base" or "draft") took this long. The first of its size makes buffers, and counts not."""
        self._passes += 1
        key = (kind, tokens)
        if key not in self._when:
            self._taken[key] = deque(maxlen=KEPT)
        elif seconds > 0:
            self._taken[key].append(seconds)
            self._fastest[kind][tokens] = min(self._taken[key])
        self._when[key] = self._passes
        if self._passes % 64 == 0:
            self._forget()

    def _forget(self) -> None:
        for kind, size in [key for key, when in self._when.items() if self._passes - when > FORGOTTEN]:
            del self._when[kind, size], self._taken[kind, size]
            self._fastest[kind].pop(size, None)

    def base(self, tokens: int) -> float:
        """A pass of the untouched base over so many tokens of any rows."""
        return self._of("base", tokens) or self._guess(tokens)

    def draft(self, tokens: int, cost: float) -> float:
        """A pass that drafts; cost: of its tokens relative to dense, which says enough until one was measured."""
        return self._of("draft", tokens) or cost * self.base(tokens)

    def _of(self, kind: str, tokens: int) -> float | None:
        known = self._fastest[kind]
        if not known:
            return None
        near = tokens if tokens in known else min(known, key=lambda size: (abs(size - tokens), size))
        likely = known[near] * self._guess(tokens) / self._guess(near)
        # a sample may have met with a busy machine: fewer tokens never take longer
        return min([likely, *(seconds for size, seconds in known.items() if size > tokens)])

    def _guess(self, tokens: int) -> float:
        return 1.0 + self._slope * (tokens - 1)
