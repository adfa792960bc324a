"""Texts whose need of depth is known: made from a seed, never repeated, each token marked with kind, k and answer.

A text is a list of words, one token each:

    < e3>e7 e7>e1 ...        pairs of a random function, each listed before the pair that it leads to
    2:e3 e1                  a question, "apply it twice to e3", and its answer
    e3 p1 p0 e6              another: e3 under permutation 1, and what comes of it under permutation 0
    f5 f6 f7                 filler: each word says which comes next

Pairs point forward, so that no pair's own token can follow the chain that a question will ask for: attention sees
earlier words only. (It can follow the chain backwards; whether a model uses that is what its table shows.) The
permutations are the same in all texts and are not written out: they are learned, and do not commute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

NONE, FILLER, HOP, COMPOSE = range(4)
KINDS = ("none", "filler", "hop", "compose")
TASKS = {"hop": (HOP,), "compose": (COMPOSE,), "mixture": (HOP, COMPOSE)}
"""Names of tasks, and the kinds of questions in each. Filler is in all of them."""
IGNORED = -100
"""The label of a token that predicts nothing."""
_RULES = 20231126
"""Seed of the permutations: the same in all texts."""


class Batch(NamedTuple):
    """B texts of T words. Marks stand at the word that predicts: the last of a question, or filler."""

    ids: np.ndarray
    """int64 [B, T]"""
    labels: np.ndarray
    """int64 [B, T]: the word that comes next, IGNORED where it cannot be known."""
    kinds: np.ndarray
    """int64 [B, T]: of what is predicted, an index into KINDS."""
    k: np.ndarray
    """int64 [B, T]: how often a question applies something; of a permutation's word, how many there are so far."""
    trail: np.ndarray
    """int64 [B, T, hops + 1]: what is known after so many applications, for those who train layer by layer: the answer
    after at most k of them; at each permutation's word what comes of those so far, IGNORED before; else the label."""

    def needs(self, table: Mapping[str, Mapping[int, int]]) -> np.ndarray:
        """int64 [B, T]: layers that each prediction needs, -1 where nothing is predicted. table: by kind and k, as it
        was measured; filler needs none."""
        need = np.full(self.ids.shape, -1)
        need[self.kinds == FILLER] = 0
        for kind in (HOP, COMPOSE):
            for k, layers in table.get(KINDS[kind], {}).items():
                need[(self.kinds == kind) & (self.k == k)] = layers
        return need


@dataclass(frozen=True)
class World:
    """What texts are made of. Raises ValueError, with the remedy, for sizes that do not fit together."""

    task: str = "hop"
    hops: int = 8
    """The highest k."""
    entities: int = 25
    """How many things are named; the function is defined on all but the last of them."""
    reach: int = 3
    """A pair leads to one of the next so many."""
    questions: int = 20
    """In each text, of all kinds together."""
    filler: int = 8
    """Words of filler in each text, in runs between questions."""
    rules: int = 3
    """How many permutations there are."""

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task[:80]!r}; choose one of {', '.join(TASKS)}")
        for field in ("hops", "reach", "questions", "rules"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}")
        if self.filler < 0:
            raise ValueError(f"filler must be at least 0, not {self.filler}")
        if (self.entities - 1) // self.reach < self.hops:
            raise ValueError(
                f"{self.hops} hops go beyond the vocabulary: {self.entities} entities with a reach of {self.reach} are "
                f"sure of {(self.entities - 1) // self.reach}; give at least {self.hops * self.reach + 1} entities, or "
                "ask for fewer hops"
            )

    @property
    def kinds(self) -> tuple[int, ...]:
        return TASKS[self.task]

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary: the text of each id."""
        names = [f"e{i}" for i in range(self.entities)]
        words = ["<", *names, *(f"f{i}" for i in range(_FILLERS)), *(f"p{i}" for i in range(self.rules))]
        if HOP in self.kinds:
            words += [f"{k}:{a}" for k in range(self.hops + 1) for a in names]
            words += [f"{a}>{b}" for a in names for b in names]
        return words

    @cached_property
    def permutations(self) -> np.ndarray:
        """int64 [rules, entities]: what each permutation makes of an entity."""
        rng = np.random.default_rng(_RULES)
        return np.stack([rng.permutation(self.entities) for _ in range(self.rules)])

    @property
    def length(self) -> int:
        """Words of each text, the same for all."""
        pairs = self.entities - 1 if HOP in self.kinds else 0
        by_kind = {HOP: 2, COMPOSE: self.hops + 2}
        return 1 + pairs + self.filler + sum(by_kind[kind] * n for kind, n in self._counts.items())

    @property
    def _counts(self) -> dict[int, int]:
        kinds, each = self.kinds, self.questions // len(self.kinds)
        return {kinds[0]: self.questions - each * (len(kinds) - 1), **dict.fromkeys(kinds[1:], each)}

    def batch(self, rows: int, *seed: int, weights: np.ndarray | None = None) -> Batch:
        """`rows` texts, the same for the same seed and others for any other. seed: any numbers; weights: fp [hops + 1],
        how often each k is asked, relative; None: all alike.

        A composition of none of the permutations is no question: k = 0 there is asked as k = 1.
        """
        rng = np.random.default_rng(seed)
        share = np.ones(self.hops + 1) if weights is None else np.asarray(weights, float)
        share = share / share.sum()
        items = np.concatenate([np.full(n, kind) for kind, n in self._counts.items()])
        k = rng.choice(self.hops + 1, (rows, len(items)), p=share)
        k = np.where(items == COMPOSE, np.maximum(k, 1), k)
        plane = (rows, self.length)
        out = Batch(*(np.zeros(plane, np.int64) for _ in range(4)), np.zeros((*plane, self.hops + 1), np.int64))
        out.labels[:] = out.trail[:] = IGNORED
        begin = 1
        names = targets = np.empty(0)
        if HOP in self.kinds:
            names, targets = self._function(rng, rows)
            begin += self.entities - 1
            named = np.take_along_axis(names, targets[1][:, :-1], 1)
            out.ids[:, 1:begin] = self._id("e0>e0") + names[:, :-1] * self.entities + named
        starts = self._places(rng, out, begin, items, k)
        every = np.arange(rows)[:, None]
        if HOP in self.kinds:
            chosen = items == HOP
            self._ask_hops(rng, out, every, starts[:, chosen], k[:, chosen], names, targets)
        if COMPOSE in self.kinds:
            chosen = items == COMPOSE
            self._ask_compositions(rng, out, every, starts[:, chosen], k[:, chosen])
        return out

    def _function(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Names of the places in the list [rows, n], and the place that k hops from each lead to, [hops + 1, rows, n];
        -1 where the list ends before."""
        n = self.entities
        step = np.arange(n) + rng.integers(1, self.reach + 1, (rows, n))
        after = np.where(np.arange(n) == n - 1, -1, np.minimum(step, n - 1))
        targets = np.empty((self.hops + 1, rows, n), np.int64)
        targets[0] = np.arange(n)
        for hop in range(1, self.hops + 1):
            before = targets[hop - 1]
            targets[hop] = np.where(before < 0, -1, np.take_along_axis(after, before, 1))
        return rng.permuted(np.tile(np.arange(n), (rows, 1)), axis=1), targets

    def _places(self, rng: np.random.Generator, out: Batch, begin: int, items: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Where each question begins, in an order of chance, int64 [rows, items]; what is left of a text is filler."""
        rows, count = k.shape
        sizes = np.where(items == HOP, 2, k + 2)
        order = rng.permuted(np.tile(np.arange(count), (rows, 1)), axis=1)
        spare = self.length - begin - sizes.sum(1)
        cuts = np.sort(rng.integers(0, spare[:, None] + 1, (rows, count)), 1)  # filler before each question
        ends = np.take_along_axis(sizes, order, 1).cumsum(1)
        starts = np.empty_like(sizes)
        np.put_along_axis(starts, order, begin + cuts + ends - np.take_along_axis(sizes, order, 1), 1)
        taken = np.zeros((rows, self.length + 1), np.int64)
        np.add.at(taken, (np.arange(rows)[:, None], starts), 1)
        np.add.at(taken, (np.arange(rows)[:, None], starts + sizes), -1)
        free = taken.cumsum(1)[:, :-1] == 0
        free[:, :begin] = False
        at, first = np.arange(self.length), self._id("f0")
        word = (rng.integers(0, _FILLERS, (rows, 1)) + at) % _FILLERS
        out.ids[free] = first + word[free]
        follows = free & np.pad(free[:, 1:], ((0, 0), (0, 1)))  # the last of a run does not know what comes
        out.labels[follows] = first + (word[follows] + 1) % _FILLERS
        out.trail[follows] = out.labels[follows][:, None]
        out.kinds[follows] = FILLER
        return starts

    def _ask_hops(
        self, rng: np.random.Generator, out: Batch, every: np.ndarray, at: np.ndarray, k: np.ndarray, names: np.ndarray,
        targets: np.ndarray,
    ) -> None:  # fmt: skip
        there = (targets >= 0).transpose(1, 0, 2)  # [rows, hops + 1, n]
        order = (rng.random(there.shape) * there).argsort(-1)[..., ::-1]
        # the same question twice would be answered by looking: each k takes its starts in turn
        turn = (k[:, :, None] == np.arange(self.hops + 1)).cumsum(1)
        turn = np.take_along_axis(turn, k[:, :, None], 2)[..., 0] - 1
        start = order[every, k, turn % there.sum(-1)[every, k]]
        way = np.minimum(np.arange(self.hops + 1), k[..., None])
        trail = self._id("e0") + names[every[..., None], targets[way, every[..., None], start[..., None]]]
        answer = trail[..., -1]
        out.ids[every, at] = self._id("0:e0") + k * self.entities + names[every, start]
        out.ids[every, at + 1] = out.labels[every, at] = answer
        out.kinds[every, at], out.k[every, at], out.trail[every, at] = HOP, k, trail

    def _ask_compositions(
        self, rng: np.random.Generator, out: Batch, every: np.ndarray, at: np.ndarray, k: np.ndarray
    ) -> None:
        state = rng.integers(0, self.entities, k.shape)
        out.ids[every, at] = self._id("e0") + state
        rules = rng.integers(0, self.rules, (*k.shape, self.hops))
        for i in range(self.hops):
            more = i < k
            state = np.where(more, self.permutations[rules[..., i], state], state)
            rows, questions = more.nonzero()
            place = at[rows, questions] + 1 + i
            out.ids[rows, place] = self._id("p0") + rules[rows, questions, i]
            out.k[rows, place] = i + 1
            out.trail[rows, place, i + 1 :] = self._id("e0") + state[rows, questions][:, None]
        answer = self._id("e0") + state
        out.ids[every, at + k + 1] = out.labels[every, at + k] = answer
        out.kinds[every, at + k] = COMPOSE

    def _id(self, word: str) -> int:
        return self._ids[word]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def text(self, ids: np.ndarray) -> str:
        """The text form of one text's ids."""
        return " ".join(self.words[i] for i in ids)

    def with_hops(self, hops: int) -> World:
        return dataclasses.replace(self, hops=hops)


_FILLERS = 8
