"""Where depth goes: layers by task, position, token class, repetition, surprisal and side of "=", with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from depthdial.maps.bootstrap import Bootstrap, Estimate, Interval
from depthdial.maps.costs import MapCosts
from depthdial.maps.schema import FORMAT_VERSION, LEXICAL, Facts
from depthdial.maps.store import read_map_parts
from depthdial.maps.tasks import TASKS
from depthdial.maps.tokens import REPEATS, SIDES, TokenTable, View, token_table

Scope = Literal["answer", "prompt", "all"]
VIEWS: tuple[View, ...] = ("wrote", "read")
SCOPES: tuple[Scope, ...] = ("answer", "prompt", "all")
POSITIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Where the bins of the table by position begin."""


@dataclass(frozen=True)
class Cell:
    """Mean layers of some tokens."""

    name: str
    tokens: int
    layers: Interval


@dataclass(frozen=True)
class Ordering:
    """A claim that depth rises along a chain of cells of one table, and what the map says of it."""

    claim: str
    steps: list[tuple[str, Interval]]
    """Each step of the chain, "b - a": how many more layers the deeper one uses."""

    @property
    def verdict(self) -> str:
        """confirmed: every step is above zero; refuted: one is below; undecided: the map cannot tell."""
        if any(step.high < 0 for _, step in self.steps):
            return "refuted"
        return "confirmed" if all(step.low > 0 for _, step in self.steps) else "undecided"


@dataclass(frozen=True)
class Summary:
    """All tables of one map, for one view and one scope."""

    facts: Facts
    view: View
    scope: Scope
    texts: int
    groups: int
    tokens: int
    layers: Interval
    tables: dict[str, list[Cell]]
    run_rate: list[Interval] = field(default_factory=list)
    """By layer; empty where masks are not recorded."""
    run_rate_by_task: dict[str, list[float]] = field(default_factory=dict)
    entropy: dict[str, Interval] = field(default_factory=dict)
    """Correlation of layers with the base's entropy: Pearson's, Spearman's, and Pearson's by task."""
    orderings: list[Ordering] = field(default_factory=list)
    costs: dict[str, Interval] = field(default_factory=dict)
    """True cost of prompts and answers, whole (see `costs`)."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; null where nothing can be said."""
        return {
            "format_version": FORMAT_VERSION,
            "facts": self.facts.to_json(),
            **{name: getattr(self, name) for name in ("view", "scope", "texts", "groups", "tokens")},
            "layers": self.layers.to_json(),
            **{name: interval.to_json() for name, interval in self.costs.items()},
            "tables": {
                name: [{"name": c.name, "tokens": c.tokens, **c.layers.to_json()} for c in cells]
                for name, cells in self.tables.items()
            },
            "run_rate": [rate.to_json() for rate in self.run_rate],
            "run_rate_by_task": self.run_rate_by_task,
            "entropy_correlation": {name: found.to_json() for name, found in self.entropy.items()},
            "orderings": [
                {
                    "claim": o.claim,
                    "verdict": o.verdict,
                    "steps": [{"step": name, **step.to_json()} for name, step in o.steps],
                }
                for o in self.orderings
            ],
        }


def summarise(path: str | Path, view: View = "wrote", scope: Scope = "answer", seed: int = 0) -> Summary:
    """Summarise a map on disk.

    view: a token's depth is that of the pass that wrote it, or that read it. scope: tokens of answers, of prompts, or
    all; a map without answers has its prompts summarised instead. Raises ValueError for what is no map.
    """
    if view not in VIEWS:
        raise ValueError(f"view must be {' or '.join(VIEWS)}, not {view!r}")
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, not {scope!r}")
    costs = MapCosts()
    facts, tokens, texts = token_table(costs.counting(read_map_parts(path)), view)
    if scope == "answer" and not tokens.generated.any():
        scope = "prompt"
    if scope != "all":
        tokens = tokens.where(tokens.generated == (scope == "answer"))
    if not len(tokens):
        raise ValueError(f"{path} has no token in {scope}s; ask for --scope all")
    return replace(Summariser(facts, tokens, seed).summary(view, scope, texts), costs=costs.intervals(seed))


class Summariser:
    """Tables over one set of tokens, all from the same bootstrap draws."""

    def __init__(self, facts: Facts, tokens: TokenTable, seed: int = 0):
        self.facts, self.tokens = facts, tokens
        _, groups = np.unique(tokens.group, return_inverse=True)
        self.bootstrap = Bootstrap(groups, seed=seed)
        self.estimates: dict[str, tuple[list[str], Estimate]] = {}
        """What each table was made from, for the differences between its cells."""

    def summary(self, view: View, scope: Scope, texts: int) -> Summary:
        tokens, every = self.tokens, np.ones(len(self.tokens), bool)
        tasks = sorted(set(tokens.task), key=lambda name: (TASKS.index(name) if name in TASKS else len(TASKS), name))
        place = np.searchsorted(POSITIONS, tokens.place, side="right") - 1
        deciles = _deciles(tokens.surprisal)
        tables = {
            "task": self._table("task", tasks, _index(tokens.task, tasks)),
            "position": self._table("position", _position_names(), place),
            "token class": self._table("token class", LEXICAL, _index(tokens.kind, LEXICAL)),
            "repetition": self._table("repetition", REPEATS, tokens.repeat),
            "repetition within tasks": self._within("repetition within tasks", REPEATS, tokens.repeat),
            "surprisal": self._table("surprisal", *deciles),
            "side of =": self._table("side of =", SIDES[:2], tokens.side)
            + self._table("digits beside =", SIDES[2:], np.where(tokens.digit, tokens.side, -1)),
        }
        rates = self.bootstrap.rates(tokens.ran, every)
        by_task = {task: tokens.ran[tokens.task == task].mean(0).round(5).tolist() for task in tasks}
        whole = self.bootstrap.means(tokens.depth, np.zeros(len(tokens), np.int64), 1)
        return Summary(
            self.facts, view, scope, texts, self.bootstrap.count, len(tokens), whole.interval(0),
            {name: cells for name, cells in tables.items() if cells},
            [rates.interval(layer) for layer in range(tokens.ran.shape[1])],
            by_task if tokens.ran.shape[1] else {},
            self._entropy(tasks, every),
            self._orderings(),
        )  # fmt: skip

    def _within(self, name: str, cells: Sequence[str], place: np.ndarray) -> list[Cell]:
        """Mean layers by cell as if every task had as much of each (direct standardisation): differences between cells
        are means of differences inside tasks. Of tasks that have all cells; each weighs as many tokens as its
        smallest cell. No table where no task has them all."""
        task, k = np.unique(self.tokens.task.astype(str), return_inverse=True)[1], len(cells)
        tasks = int(task.max()) + 1
        raw = self.bootstrap.means(self.tokens.depth, np.where(place < 0, -1, task * k + place), tasks * k)
        sizes = raw.tokens.reshape(tasks, k)
        filled = sizes.sum(0) > 0
        weights = sizes[:, filled].min(1)
        complete = weights > 0
        if not complete.any():
            return []
        weights = weights[complete] / weights.sum()
        mean = np.einsum("t,tk->k", weights, raw.mean.reshape(tasks, k)[complete])
        draws = np.einsum("t,dtk->dk", weights, raw.draws.reshape(-1, tasks, k)[:, complete])
        estimate = Estimate(sizes[complete].sum(0), mean, draws)
        self.estimates[name] = list(cells), estimate
        return [Cell(cell, int(estimate.tokens[i]), estimate.interval(i)) for i, cell in enumerate(cells) if filled[i]]

    def _table(self, name: str, cells: Sequence[str], place: np.ndarray) -> list[Cell]:
        """Mean layers by cell; place: int [N], the cell of each token, -1 for none. Empty cells are left out."""
        if not len(cells):
            return []
        means = self.bootstrap.means(self.tokens.depth, place, len(cells))
        self.estimates[name] = list(cells), means
        return [Cell(cell, int(means.tokens[k]), means.interval(k)) for k, cell in enumerate(cells) if means.tokens[k]]

    def _entropy(self, tasks: Sequence[str], every: np.ndarray) -> dict[str, Interval]:
        tokens, finite = self.tokens, np.isfinite(self.tokens.entropy)
        if not finite.any():
            return {}
        correlation = self.bootstrap.correlation
        correlations = {"all (Pearson)": correlation(tokens.depth, tokens.entropy, every)}
        depth, entropy = (np.full(len(tokens), np.nan) for _ in range(2))
        depth[finite], entropy[finite] = _ranks(tokens.depth[finite]), _ranks(tokens.entropy[finite])
        correlations["all (Spearman)"] = correlation(depth, entropy, every)
        return correlations | {task: correlation(tokens.depth, tokens.entropy, tokens.task == task) for task in tasks}

    def _orderings(self) -> list[Ordering]:
        """The claims of FlexiDepth's paper, as far as the map has the cells."""
        chains: list[tuple[str, tuple[str, ...]]] = [
            ("task", ("copy", "summarise", "continue")),
            ("task", ("repeat", "add", "multiply")),
            ("side of =", SIDES[:2]),
            ("digits beside =", SIDES[2:]),
            ("repetition", (REPEATS[2], REPEATS[0])),
            ("repetition within tasks", (REPEATS[2], REPEATS[0])),
        ]
        orderings = []
        for table, chain in chains:
            cells, estimate = self.estimates.get(table, ([], None))
            if estimate is None or any(c not in cells or not estimate.tokens[cells.index(c)] for c in chain):
                continue
            steps = [
                (f"{more} - {less}", estimate.difference(cells.index(more), cells.index(less)))
                for less, more in pairwise(chain)
            ]
            within = ", within tasks" if table.endswith("within tasks") else ""
            orderings.append(Ordering(" < ".join(chain) + within, steps))
        return orderings


def _index(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The place of each value among the names."""
    places = {name: i for i, name in enumerate(names)}
    return np.array([places[value] for value in values], np.int64)


def _position_names() -> list[str]:
    ends = [*(start - 1 for start in POSITIONS[1:]), None]
    return [
        f"{start}+" if end is None else str(start) if start == end else f"{start}-{end}"
        for start, end in zip(POSITIONS, ends, strict=True)
    ]


def _deciles(surprisal: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names with the bounds in nats, and the decile of each token, -1 where it is not known."""
    finite = np.isfinite(surprisal)
    if not finite.any():
        return [], np.full(len(surprisal), -1)
    edges = np.quantile(surprisal[finite], np.linspace(0, 1, 11))
    place = np.clip(np.searchsorted(edges, surprisal, side="right") - 1, 0, 9)
    names = [f"{i + 1}: {edges[i]:.2f}-{edges[i + 1]:.2f}" for i in range(10)]
    return names, np.where(finite, place, -1)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks: equal values share one."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
