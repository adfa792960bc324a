"""Which tokens run in the next step: continuous batching over slots and pages.

A row is a text with `length` known tokens, of which `computed` have their K and V in the cache: a row that decodes
lacks one, a prompt lacks many and catches up in chunks. When pages run out the row that came last goes back to the
queue and is computed again later. This file is *not* about how a pass is run (`runner`) or a token drawn (`step`).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from depthdial.engine.cache import Cache, pages_for
from depthdial.engine.request import Row
from depthdial.engine.speculate import Draft
from depthdial.engine.stats import Stats
from depthdial.kernels.tensors import PAGE


class Slice(NamedTuple):
    """Consecutive tokens of one row that run in one pass."""

    row: Row
    start: int
    count: int
    draft: Draft | None = None
    """What is assumed to follow the row's tokens: the slice may reach into it."""
    drafting: bool = False
    """Does the pass run at the row's draft offset, for one more token of the draft?"""
    scored: int | None = None
    """Of a text that is only scored (`score`): how many of its last tokens have their logits asked for."""
    aloud: bool = False
    """Are logits of all its tokens asked for, since the prompt's log-probabilities are?"""

    @property
    def tokens(self) -> list[int]:
        """The tokens that run."""
        known = self.row.tokens[self.start : self.start + self.count]
        if self.draft is not None and len(known) < self.count:
            first = max(0, self.start - self.row.length)
            known += self.draft.tokens[first : first + self.count - len(known)]
        return known

    @property
    def offset(self) -> float:
        """The dial of its first token, and of all where it drafts."""
        return self.row.request.draft_offset if self.drafting else self.row.offset(self.start)

    @property
    def asked(self) -> int:
        """How many of the last tokens have their logits asked for."""
        if self.scored is not None:
            return self.scored
        return self.count if self.aloud else self.drawn

    @property
    def drawn(self) -> int:
        """How many tokens are drawn after it."""
        if not self.completes:
            return 0
        return 1 if self.draft is None or self.drafting else 1 + len(self.draft.tokens)

    @property
    def decodes(self) -> bool:
        """Is a token drawn after each of its tokens?"""
        return self.count == self.drawn

    @property
    def completes(self) -> bool:
        """Does the row get its next token from this pass?"""
        return self.start + self.count == self.row.length + (len(self.draft.tokens) if self.draft else 0)


class Scheduler:
    """Rows that wait and rows that run.

    max_batch: most rows at a time; chunk: most prompt tokens in one step, so that rows that decode never wait long.
    """

    def __init__(self, cache: Cache, max_batch: int, chunk: int, stats: Stats):
        self.cache, self.max_batch, self.chunk, self.stats = cache, max_batch, chunk, stats
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.roles = False
        """`Runner.roles`, of the runner that is scheduled for."""

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def check(self, tokens: int) -> None:
        """ValueError if a text of so many tokens could never fit, even alone."""
        if pages_for(tokens) > self.cache.pages:
            raise ValueError(
                f"a request of {tokens} tokens (prompt and max_tokens) cannot fit into a KV cache of "
                f"{self.cache.pages * PAGE}; raise cache_tokens or lower max_tokens"
            )

    def add(self, row: Row) -> None:
        self.waiting.append(row)

    def remove(self, row: Row) -> None:
        """Take a row out, wherever it is, and give back what it holds."""
        if row.slot is not None:
            self.cache.close(row.slot)
            row.slot = None
            self.running.remove(row)
        elif row in self.waiting:
            self.waiting.remove(row)

    def schedule(self) -> list[Slice]:
        """The next step's tokens: one for each row that decodes, then prompts, up to `chunk` tokens of them."""
        slices: list[Slice] = []
        longer = []
        for row in list(self.running):
            if row.slot is None:  # it has just given way
                continue
            if row.length - row.computed == 1:
                self._run(row, 1, slices)
            else:
                longer.append(row)
        left = self.chunk
        for row in longer:
            if row.slot is not None and left:
                left -= self._run(row, min(left, row.length - row.computed), slices)
        while left > 0 and (row := self._admit()) is not None:
            ran = self._run(row, min(left, row.length - row.computed), slices)
            assert ran, "a row is admitted only where its pages are to be had"
            left -= ran
        return slices

    def _run(self, row: Row, count: int, slices: list[Slice]) -> int:
        """Add the row's next `count` tokens; 0 if it had to give way to older rows instead."""
        assert row.slot is not None
        while not self.cache.grow(row.slot, row.computed, row.computed + count):
            last = self.running[-1]
            self._preempt(last)
            slices[:] = [part for part in slices if part.row is not last]
            if last is row:
                return 0
        slices.append(Slice(row, row.computed, count, aloud=row.request.unscored))
        return count

    def room(self, row: Row, drafts: int) -> bool:
        """Make room behind a row's next token for so many drafts; no other row gives way for them."""
        assert row.slot is not None
        return self.cache.grow(row.slot, row.computed, row.computed + 1 + drafts)

    def _preempt(self, row: Row) -> None:
        self.remove(row)
        row.computed = 0
        self.waiting.appendleft(row)
        self.stats.preemptions += 1

    def _admit(self) -> Row | None:
        """Start the first row that waits and may run; None if there is none, or no room for it."""
        if not self.waiting or len(self.running) >= self.max_batch:
            return None
        for row in self.waiting:
            source = self._sibling(row)
            if source is not None and not source.prompt_done:
                continue  # its prompt is being read already
            if not (self._fork(row, source) if source is not None else self._start(row)):
                return None  # first come, first served: nobody overtakes it for its pages
            self.waiting.remove(row)
            self.running.append(row)
            return row
        return None

    def _sibling(self, row: Row) -> Row | None:
        """A running row of the same request; None where sharing gives nothing."""
        if row.request.params.n == 1 or row.token_ids:
            return None
        return next((other for other in self.running if other.request is row.request), None)

    def _fork(self, row: Row, source: Row) -> bool:
        """Share the prompt of a sibling but for its last token, which gives the row its own first logits."""
        assert source.slot is not None
        prompt = len(row.request.token_ids)
        if self.cache.available < 2:
            return False
        row.slot, row.computed = self.cache.fork(source.slot, prompt - 1), prompt - 1
        row.note(0, source.ran_depths[: prompt - 1], source.ran_costs[: prompt - 1])
        row.keys = source.keys[: (prompt - 1) // PAGE]
        return True

    def _start(self, row: Row) -> bool:
        chain = row.chain(self.roles)
        saved = [] if row.request.unscored else self.cache.prefixes.find(chain)
        # pages for all its known tokens and one more, or it would soon be preempted; alone, it is known to fit
        needed = pages_for(row.length + 1) - len(saved) + self.cache.prefixes.idle_among(saved)
        if self.running and needed > self.cache.available:
            return False
        row.slot, row.computed = self.cache.open(saved), len(saved) * PAGE
        row.keys = chain[: len(saved)]
        for i, entry in enumerate(saved):
            row.note(i * PAGE, entry.depths, entry.costs)
        self.stats.cached_tokens += row.computed
        row.request.cached_tokens = max(row.request.cached_tokens, min(row.computed, len(row.request.token_ids)))
        return True

    def ran(self, part: Slice) -> None:
        """Note that a slice has run: its pages that are full now may serve other rows. Of a draft only what the row
        has taken counts; the rest is rolled back."""
        row = part.row
        row.computed = end = min(part.start + part.count, row.length - 1) if part.draft else part.start + part.count
        assert row.slot is not None
        while (len(row.keys) + 1) * PAGE <= end:
            first = len(row.keys) * PAGE
            places = slice(first, first + PAGE)
            row.keys.append(row.page_key(first, row.keys[-1] if row.keys else row.request.key, self.roles))
            depths, costs = row.ran_depths[places], row.ran_costs[places]
            self.cache.save(row.slot, first // PAGE, row.keys[-1], depths, costs)
        if part.draft:
            self.cache.shrink(row.slot, row.length)
