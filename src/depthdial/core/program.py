"""Where does a token go next? A program says it as data: which blocks the residual stream visits, in which order, where
a token that does not run a step goes instead, and what K and V it leaves there.

A loop is unrolled: the block repeats, the step does not. Jumps go forward only. This file is *not* about what a token
decides (methods) or how a step is run (executors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

END = 1 << 30
"""Beyond the last step: the final norm and the head."""

Unit = Literal["layer", "attn", "mlp"]
Absent = Literal["project", "nothing"]


@dataclass(frozen=True)
class Step:
    """One visit of one block, or of its attention or MLP, by the residual stream."""

    block: int
    """The base's layer; -1 - k is the k-th of the method's own blocks (`Program.own`)."""
    unit: Unit = "layer"
    routed: Literal["no", "weigh", "skip"] = "no"
    """Is there a decision: none, one that only weighs the update, or one that may skip it?"""
    then: int | None = None
    """The step that a token which ran this one goes to; None: the next."""
    otherwise: int | None = None
    """The step that a token which did not run it goes to; None: the next."""
    absent: Absent = "project"
    """What a token of the row that does not run this step leaves here: K and V of its present state, or nothing, and
    later tokens of the row do without."""
    shows: frozenset[str] = frozenset()
    """{"logits"}: what is shown to this step's decision beside the token's state; every token that waits here pays."""
    head_rows: int | None = None
    """Of "logits": those of the first so many ids of the vocabulary; None: of all."""
    base: bool = True
    """Does the untouched base run it? Not an exit's own block, nor a second visit that the base does not make."""

    @property
    def attends(self) -> bool:
        """Does it leave K and V?"""
        return self.unit != "mlp"


class OwnBlock(NamedTuple):
    """A decoder block among the method's own parts, of the shape of the base's."""

    copy: int
    """The base's layer it begins as a copy of."""
    place: int
    """The base's layer before which it stands: it begins with that one's input norm, which knows the stream there, and
    its attention is of that one's kind (window, rope)."""


class Visit(NamedTuple):
    """Consecutive steps that make up one passage through a block: the layer, or its attention and then its MLP."""

    block: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """The steps in order. Every visit has a cache row of its own, in this order."""

    steps: tuple[Step, ...]
    own: tuple[OwnBlock, ...] = field(default=())

    @cached_property
    def visits(self) -> tuple[Visit, ...]:
        """The passages through blocks, in order; an executor has one layer for each."""
        visits: list[Visit] = []
        for index, step in enumerate(self.steps):
            if step.unit == "mlp":
                visits[-1] = Visit(step.block, (*visits[-1].steps, index))
            else:
                visits.append(Visit(step.block, (index,)))
        return tuple(visits)

    @cached_property
    def visit_of(self) -> tuple[int, ...]:
        """For each step, which visit it belongs to."""
        return tuple(i for i, visit in enumerate(self.visits) for _ in visit.steps)

    @cached_property
    def routed(self) -> tuple[int, ...]:
        """The steps with a decision."""
        return tuple(i for i, step in enumerate(self.steps) if step.routed != "no")

    @cached_property
    def skips(self) -> bool:
        """May anything be left out?"""
        return any(self.steps[i].routed == "skip" for i in self.routed)

    @cached_property
    def jumps(self) -> bool:
        """Does any token go elsewhere than to the next step?"""
        return any(step.then is not None or step.otherwise is not None for step in self.steps)

    @cached_property
    def sparse(self) -> tuple[int, ...]:
        """The visits at which a token of a row may leave neither K nor V."""
        found, beyond = [], 0
        for v, visit in enumerate(self.visits):
            s = visit.steps[0]
            step = self.steps[s]
            if step.absent == "nothing" and (step.routed == "skip" or s < beyond):
                found.append(v)
            for each in (self.steps[i] for i in visit.steps):  # tokens may jump over what comes before this
                beyond = max(beyond, each.then or 0, each.otherwise or 0)
        return tuple(found)

    @cached_property
    def gaps(self) -> bool:
        """Is there a step at which a token of a row may leave neither K nor V?"""
        return bool(self.sparse)

    @cached_property
    def first(self) -> int:
        """The first step that is not simply a layer of the base, run by all tokens in its turn; the number of steps
        where all are."""
        for s, step in enumerate(self.steps):
            goes_on = step.routed == "no" and step.then is None and step.base
            if not goes_on or step.block != self.visit_of[s]:
                return s
        return len(self.steps)

    @cached_property
    def branches(self) -> tuple[int, ...]:
        """The routed steps, where each is an exit: a block of the method's own by which a token leaves for good what is
        otherwise the untouched base. Empty in other programs."""
        steps, routed = self.steps, self.routed
        leave = all(self.after(s, True) == END and self.after(s, False) == s + 1 for s in routed)
        own = all(step.base != (s in routed) and (s in routed or step.then is None) for s, step in enumerate(steps))
        return routed if leave and own else ()

    @cached_property
    def plain(self) -> bool:
        """Is it the base's own layers, each once and in order?"""
        return not self.jumps and [v.block for v in self.visits] == list(range(len(self.visits)))

    @cached_property
    def least(self) -> int:
        """The fewest visits that a token can make; one counts when any of its steps runs."""
        count = len(self.steps)
        least = [0] * (count + 1)
        """From each visit's first step on."""
        for visit in reversed(self.visits):
            ways = {(visit.steps[0], False)}  # where a token may be, and whether it has run a part
            for s in visit.steps:
                here = {way for way in ways if way[0] == s}
                ways -= here
                for _, any_ran in here:
                    for ran in (True, False) if self.steps[s].routed == "skip" else (True,):
                        ways.add((self.after(s, ran), any_ran or ran))
            least[visit.steps[0]] = min(any_ran + least[min(to, count)] for to, any_ran in ways)
        return least[0]

    def step(self, layer: int, unit: Unit = "layer") -> int:
        """The first step that is this unit of a base's layer. ValueError where there is none."""
        for index, step in enumerate(self.steps):
            if (step.block, step.unit) == (layer, unit):
                return index
        raise ValueError(f"no step of this program is {unit} {layer}")

    def after(self, s: int, ran: bool) -> int:
        """The step that a token goes to from step `s`."""
        step = self.steps[s]
        target = step.then if ran else step.otherwise
        following = s + 1 if s + 1 < len(self.steps) else END
        return following if target is None else target

    @cached_property
    def base_way(self) -> tuple[int, ...]:
        """The steps at which a token of the untouched base waits, in order."""
        way, s = [], 0
        while s < len(self.steps):
            way.append(s)
            s = self.after(s, self.steps[s].base)
        return tuple(way)

    def check(self, depth: int) -> None:
        """Raise ValueError, one line that names the step, for what no executor can run on a base of `depth` layers."""
        starts = {visit.steps[0] for visit in self.visits_checked()}
        for s, step in enumerate(self.steps):
            name = f"step {s} ({step.unit} of block {step.block})"
            if not -len(self.own) <= step.block < depth:
                raise ValueError(f"{name}: there is no such block; the base has {depth} layers and the method "
                                 f"{len(self.own)} blocks of its own")  # fmt: skip
            for word, target in (("then", step.then), ("otherwise", step.otherwise)):
                if target is None or target == END:
                    continue
                if not 0 <= target < len(self.steps):
                    raise ValueError(f"{name}: {word} is {target}, and the last step is {len(self.steps) - 1}")
                if target <= s:
                    raise ValueError(f"{name}: {word} jumps back to step {target}; unroll the loop instead")
                if target not in starts:
                    raise ValueError(f"{name}: {word} goes to step {target}, the middle of a block")
            if step.otherwise is not None and step.routed != "skip":
                raise ValueError(f"{name}: has an `otherwise`, and nothing decides that a token does not run it")
            if step.head_rows is not None and "logits" not in step.shows:
                raise ValueError(f"{name}: says how many logits it shows, and shows none")
            if step.shows and (step.unit != "layer" or step.routed == "no"):
                raise ValueError(f"{name}: only the decision of a whole layer can be shown logits")
            if unknown := step.shows - {"logits"}:
                raise ValueError(f"{name}: cannot show {', '.join(sorted(unknown))}; only logits")
        for own in self.own:
            if not (0 <= own.copy < depth and 0 <= own.place < depth):
                raise ValueError(f"an own block copies layer {own.copy} at layer {own.place}; the base has {depth}")
        for s, step in enumerate(self.steps):
            if step.base != (s in self.base_way) and (step.base or step.routed != "skip"):
                does = "never comes here" if step.base else "comes here, and nothing decides that it goes on"
                name = f"step {s} ({step.unit} of block {step.block})"
                raise ValueError(f"{name}: `base` is {step.base}, and the untouched base {does}")

    def visits_checked(self) -> tuple[Visit, ...]:
        """`visits`; ValueError where an MLP does not follow the attention of its own block."""
        for s, step in enumerate(self.steps):
            before = self.steps[s - 1] if s else None
            follows = before is not None and before.unit == "attn"
            if (step.unit == "mlp") != follows or (follows and before is not None and before.block != step.block):
                raise ValueError(f"step {s} ({step.unit} of block {step.block}): attention and MLP of a block come one "
                                 "after the other, or as one layer")  # fmt: skip
        if not self.steps or self.steps[-1].unit == "attn":
            raise ValueError("a program ends with a whole block")
        return self.visits


def plain(
    depth: int,
    layers: Sequence[int] = (),
    units: Sequence[str] = ("layer",),
    absent: Absent = "project",
    routed: Literal["weigh", "skip"] = "skip",
) -> Program:
    """The base's layers in order, those of `layers` routed at `units`: "layer", or "attn" and "mlp", or one of them.

    Raises ValueError for layers that the base does not have.
    """
    if any(not 0 <= layer < depth for layer in layers):
        raise ValueError(f"routed layers {sorted(layers)} do not fit a model of {depth} layers")
    steps: list[Step] = []
    for block in range(depth):
        if block not in layers or tuple(units) == ("layer",):
            steps.append(Step(block, "layer", routed if block in layers else "no", absent=absent))
        else:
            for unit in ("attn", "mlp"):
                steps.append(Step(block, unit, routed if unit in units else "no", absent=absent))
    return Program(tuple(steps))
