"""Lossless mode: which tokens to draft for a row, from where, and how many; and which drafts were right.

Drafts come from an earlier occurrence in the text (`lookup`) or from the plug-in at a lower budget, whose passes read
the base's K and V. The untouched base runs over all drafts of a row in one pass and draws, at each place, the token it
would have drawn without them, by the key of that place (seed, sample, position). A draft is right if it is that token;
the first that is wrong is replaced by it. So the text is the base's own token for token, greedy and sampled alike,
whatever was drafted and whoever shares the batch. For a sampled row this is rejection sampling in which draft and base
share their noise (Daliri, Musco, Suresh 2024): a draft from q is kept with probability of at least
(1 - TV(p, q)) / (1 + TV(p, q)), one from the text with p of it, and what replaces it follows the residual.

Drafting pays where it adds more expected tokens than its seconds would have given otherwise. Both are measured
(`acceptance`); where it does not pay nothing is drafted but a probe now and then. This file is *not* about how a pass
is run (`step`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

from depthdial.engine.acceptance import Prices, Rates
from depthdial.engine.lookup import LONGEST, Lookup, copied
from depthdial.engine.request import Row
from depthdial.engine.stats import Source, Speculation

MOST = 16
"""Tokens of all rows of a pass that verifies."""
PROBE, PATIENCE = 32, 512
"""Rounds without a draft from a source before it is tried again; at most, where trying keeps failing."""
CONFIDENCES = (0.3, 0.5, 0.7, 0.85, 0.95)
"""Bounds between kinds of drafts of a model, by the probability it gave them."""
MARGIN = 1.05
"""Drafts must promise so many times the tokens a second: their worth and the time of passes are not known exactly."""
ANY = ("model", "any")
"""A model's draft whose confidence is not known yet."""


@dataclass
class Draft:
    """What is assumed to follow a row's tokens."""

    source: Source
    tokens: list[int] = field(default_factory=list)
    kinds: list[Hashable] = field(default_factory=list)
    """Of each token, for the rates."""
    cost: float = 0.0
    """True cost of the passes that made it, relative to one dense token."""
    reach: float = 1.0
    """The chance that all its tokens are right."""


DraftPass = Callable[[Sequence[Row], Sequence[Draft]], Sequence[tuple[int, float, float]] | None]
"""Runs the next token of each row's draft; gives (token, its probability, true cost), None if the pass failed."""
Room = Callable[[Row, int], bool]
"""Are there places in the cache for so many drafts of a row?"""


def accepted(drafts: Sequence[int], drawn: Sequence[int]) -> list[int]:
    """The tokens that a verified row gets. drawn: the base's own after each of the drafts before, one more of them."""
    count = 0
    while count < len(drafts) and drafts[count] == drawn[count]:
        count += 1
    return list(drawn[: count + 1])


class Speculator:
    """Plans drafts for the rows of a step and learns from what became of them.

    longest: most drafts of one row at a time; prices: of passes; stats: counts what happens.
    """

    def __init__(self, stats: Speculation, prices: Prices | None = None, longest: int = MOST - 1):
        self.stats, self.longest = stats, longest
        self.prices = Prices() if prices is None else prices
        self._rates = Rates(_first_guess, memory=128)
        self._rows: WeakKeyDictionary[Row, _Known] = WeakKeyDictionary()

    def plan(self, rows: Sequence[Row], others: int, room: Room, run: DraftPass) -> dict[Row, Draft]:
        """Drafts for rows that are about to decode; those without any are left out.

        others: tokens of other rows that run in the same pass.
        """
        size = len(rows) + others
        if size >= MOST:
            return {}
        found = {
            row: draft for row, draft in self._copies(rows, size, room).items() if self._beats_model(row, draft, size)
        }
        taken = sum(len(draft.tokens) for draft in found.values())
        gained = sum(_expected(self._known(row).rates, draft) for row, draft in found.items())
        left = [row for row in rows if row not in found and row.request.draft_offset != math.inf]
        if left:
            found |= self._model(left, size + taken, size + gained, room, run)
        for row in rows:
            self._known(row).rounds += 1
        return found

    def learn(self, row: Row, draft: Draft, right: int) -> None:
        """The first `right` tokens of a draft were right."""
        known = self._known(row)
        for i, kind in enumerate(draft.kinds[: right + 1]):
            known.rates.note(kind, i < right)
            if draft.source == "model":
                known.rates.note(ANY, i < right)
        known.tried(draft.source, right > 0)
        self.stats.verified(draft.source, len(draft.tokens), right)

    def _known(self, row: Row) -> _Known:
        if row not in self._rows:
            self._rows[row] = _Known(Rates(self._rates.rate, self._rates))
        return self._rows[row]

    def _most(self, row: Row) -> int:
        """Drafts that a row can use: a round gives one token more than it accepts."""
        return min(self.longest, row.request.limit - len(row.token_ids) - 1)

    def _copies(self, rows: Sequence[Row], size: int, room: Room) -> dict[Row, Draft]:
        """Drafts from the rows' own texts, as many in all as give the most tokens a second."""
        gains: list[tuple[float, int, Row]] = []
        whole: dict[Row, Draft] = {}
        for row in rows:
            known, most = self._known(row), min(self._most(row), MOST - size)
            place = known.lookup.find(row.tokens) if most > 0 else None
            if place is None:
                continue
            draft = whole[row] = Draft("lookup", copied(row.tokens, place.at, most))
            draft.kinds = [("lookup", min(place.matched + i, LONGEST)) for i in range(most)]
            chance = 1.0
            for i, kind in enumerate(draft.kinds):
                chance *= known.rates.rate(kind)
                gains.append((chance, i + 1, row))
        gains.sort(key=lambda gain: -gain[0])
        best, count, tokens = MARGIN * size / self.prices.base(size), 0, float(size)
        for i, (chance, _, _) in enumerate(gains[: MOST - size]):
            tokens += chance
            if (rate := tokens / self.prices.base(size + i + 1)) > best:
                best, count = rate, i + 1
        lengths = dict.fromkeys(whole, 0)
        for _, length, row in gains[:count]:
            lengths[row] = max(lengths[row], length)
        if not count and (probe := next((row for row in whole if self._known(row).due("lookup")), None)):
            lengths[probe] = 1
        found = {}
        for row, length in lengths.items():
            if length and room(row, length):
                del whole[row].tokens[length:], whole[row].kinds[length:]
                found[row] = whole[row]
        return found

    def _beats_model(self, row: Row, copy: Draft, size: int) -> bool:
        """Is a draft from the text expected to give more tokens a second than one of the plug-in, of any length?"""
        if row.request.draft_offset == math.inf:
            return True
        rates, price, base = self._known(row).rates, self._price, self.prices.base
        best, gained, seconds, chance = 0.0, float(size), base(size), 1.0
        for i in range(self._most(row)):
            chance *= rates.rate(ANY)
            gained, seconds = gained + chance, seconds + price([row], size + i)
            best = max(best, gained / seconds)
        return (size + _expected(rates, copy)) / base(size + len(copy.tokens)) >= best

    def _model(self, rows: Sequence[Row], size: int, tokens: float, room: Room, run: DraftPass) -> dict[Row, Draft]:
        """Drafts of the plug-in, a token of every row at a time, as long as the next one pays."""
        found: dict[Row, Draft] = {}
        seconds = self.prices.base(size)
        drafts = {row: Draft("model") for row in rows}
        going = list(rows)
        while going := [row for row in going if len(drafts[row].tokens) < self._most(row)]:
            if size + len(going) > MOST:
                break
            rate = MARGIN * tokens / seconds
            price = self._price(going, size)
            paying = [row for row in going if self._chance(row, drafts[row]) * len(going) > rate * price]
            if not paying and not found:
                paying = [row for row in going if self._known(row).due("model") and len(going) > rate * price][:1]
            going = [row for row in paying if room(row, len(drafts[row].tokens) + 1)]
            if not going:
                break
            price = self._price(going, size)
            made = run(going, [drafts[row] for row in going])
            if made is None:
                return {row: draft for row, draft in found.items() if row not in going}
            for row, (token, confidence, cost) in zip(going, made, strict=True):
                kind = ("model", sum(confidence > bound for bound in CONFIDENCES))
                draft = drafts[row]
                draft.reach *= self._known(row).rates.rate(kind)
                draft.tokens.append(token)
                draft.kinds.append(kind)
                draft.cost += cost
                tokens += draft.reach
                found[row] = draft
                self.stats.drafts(cost)
            seconds, size = seconds + price, size + len(going)
        return found

    def _price(self, rows: Sequence[Row], size: int) -> float:
        """Seconds that a further draft of each row takes, in a pass of its own and in the one that verifies."""
        cost = sum(row.request.draft_cost for row in rows) / len(rows)
        drafting = self.prices.draft(len(rows), cost)
        return drafting + self.prices.base(size + len(rows)) - self.prices.base(size)

    def _chance(self, row: Row, draft: Draft) -> float:
        return draft.reach * self._known(row).rates.rate(ANY)


@dataclass
class _Known:
    """What was learnt of one row."""

    rates: Rates
    lookup: Lookup = field(default_factory=Lookup)
    rounds: int = 0
    _last: dict[Source, int] = field(default_factory=dict)
    _patience: dict[Source, int] = field(default_factory=dict)

    def due(self, source: Source) -> bool:
        """Is it time to see whether a source that does not pay does so by now?"""
        return self.rounds - self._last.get(source, 0) >= self._patience.get(source, PROBE)

    def tried(self, source: Source, right: bool) -> None:
        self._last[source] = self.rounds
        self._patience[source] = PROBE if right else min(2 * self._patience.get(source, PROBE), PATIENCE)


def _expected(rates: Rates, draft: Draft) -> float:
    """Tokens of a draft that will be accepted."""
    total, chance = 0.0, 1.0
    for kind in draft.kinds:
        chance *= rates.rate(kind)
        total += chance
    return total


def _first_guess(kind: Hashable) -> float:
    """Rates before anything is known."""
    assert isinstance(kind, tuple)
    if kind == ANY:
        return 0.8
    source: Literal["lookup", "model"] = kind[0]
    if source == "model":
        return (0.15, 0.4, 0.6, 0.75, 0.9, 0.97)[kind[1]]
    return 0.2 if kind[1] < 3 else 0.4 if kind[1] < 6 else 0.75
