"""A method is one paper as one frozen dataclass: its fields are hyper-parameters, its functions are equations.

A method owns no weights and no state: parts, tokens and the trace are passed in. It knows nothing of how it
is executed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.lowered import Lowered
from depthdial.core.program import Program, Step
from depthdial.core.tokens import Tokens, Trace

Parts = Mapping[str, nn.Module] | nn.ModuleDict
"""The parts of one step, by name."""


@dataclass(frozen=True)
class Dims:
    """The sizes a part may depend on."""

    hidden: int
    intermediate: int
    eps: float = 1e-5


class Seen(NamedTuple):
    """What a step shows to its decision, of the N tokens that it is asked about."""

    x: Tensor
    """[N, d]: the unit's normed input."""
    logits: Tensor | None = None
    """fp32 [N, V] or [N, head_rows], where the step shows them: the head on the token's present state."""


class LowRank(NamedTuple):
    """A low-rank change of a linear map: weight + up down."""

    down: Tensor
    """[r, in]"""
    up: Tensor
    """[out, r]"""


def span(first: int | None, last: int | None, but: Sequence[int], depth: int) -> list[int]:
    """The layers first..last-1, without those in `but`, of a model with `depth` layers; by default the upper half.
    Raises ValueError if the model has no such layers."""
    begin, end = depth // 2 if first is None else first, depth if last is None else last
    if not 0 <= begin < end <= depth:
        raise ValueError(f"routed layers {begin} to {end - 1} do not fit a model of {depth} layers")
    return [layer for layer in range(begin, end) if layer not in but]


class Probe(Protocol):
    """What a method may ask of a model while it calibrates itself (implemented in `models`)."""

    depth: int

    def block_influence(self) -> Sequence[float]:
        """1 - mean cosine similarity of each layer's input and output (ShortGPT, arXiv 2403.03853, eq. 1)."""
        ...

    def divergence(self, dropped: Sequence[int]) -> float:
        """Mean KL in nats per token from the base to the base without the layers `dropped`."""
        ...

    def readouts(self, layers: Sequence[int], head_rows: int | None) -> tuple[Tensor, Tensor]:
        """Before each of `layers`, over held-out tokens: top probability and gap to the second, by the final norm and
        the head's first rows, fp32 [layers, n, 2]; and whether the whole head's likeliest token there is that of the
        full base, bool [layers, n]."""
        ...


class Method(ABC):
    """What is decided at each step, and what replaces a step that does not run."""

    reads: ClassVar[frozenset[str]] = frozenset({"x"})
    """What decisions depend on beside the step and the dial: "x", "logits" (`Seen`), "position", "prompt", "id", "key"
    (`Tokens`). What is not named cannot be read."""
    fixed_input: bool = False
    """A control, and a field of every method with a router: routers are fed a constant vector of ones, so that each
    learns one rate for its layer and cannot see the token. What seeing it is worth is the difference."""
    budgeted: ClassVar[Mapping[str, object]] = {}
    """Fields that trained best where a budget is held (docs/log.md): what `depthdial train` sets unless told otherwise.
    The fields' own defaults are the paper's."""
    example: ClassVar[Mapping[str, object]] = {}
    """Fields with which it skips some tokens and keeps others on a model of 6 layers: the laws run it with them, and
    refuse a method that skips nothing there, as they would say nothing of it."""
    frozen: ClassVar[bool] = True
    """False: the base is trained too."""
    by_row: ClassVar[bool] = False
    """Does a row keep the way it begins on, because what it left out could not be made up for? Its dial is set for a
    whole text then, prompt included, and no budget is held."""

    @property
    def ahead(self) -> bool:
        """Are decisions known before the pass, as they look at nothing that the model computes?"""
        return not self.reads & {"x", "logits"}

    @property
    def steady(self) -> bool:
        """Do decisions depend on nothing but the step and the dial, so that the dial acts in steps?"""
        return not self.reads or self.fixed_input

    @abstractmethod
    def program(self, depth: int) -> Program:
        """Where tokens go in a base of `depth` layers. Raises ValueError where the fields do not fit it."""

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        """Fresh trainable parts (router, adapter, ...) for one routed step. Called once, at conversion."""
        return {}

    @abstractmethod
    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        """The decision of the routed step `s` for each of N tokens. trace: of the steps before, the same tokens."""

    def keeps(self, program: Program, tokens: Tokens) -> Tensor | None:
        """`keep` of what `decide` says at the routed steps of each visit that has some, bool [those visits, N], in one
        go, for a method that decides ahead, and each visit as a whole; None: `decide` must be asked step by step."""
        return None

    def bypass(self, parts: Parts, x: Tensor, s: int) -> Tensor | None:
        """What a skipped token gets instead of the unit's update, [N, d]; None is nothing (identity). x: [N, d], the
        unit's normed input."""
        return None

    def delta(self, parts: Parts, s: int) -> Mapping[str, LowRank]:
        """A step's own low-rank change of its block's linear maps, by the last part of their names ("q_proj", ...)."""
        return {}

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        """The step's `decide` and `bypass` for executors that fuse them; None: only those two describe the method."""
        return None

    def stops(self, program: Program) -> Sequence[float] | None:
        """Rising offsets, one for each way that the dial can choose, where the method knows them; None: it does not,
        or the dial has no steps."""
        return None

    @property
    def target(self) -> float | None:
        """Share of tokens that run a routed step, as the fields ask for it; None where they do not say."""
        return None

    def loss(self, tokens: Tokens, trace: Trace) -> Tensor | None:
        """Auxiliary loss per token, fp32 [N]; normalised like the LM loss by whoever trains."""
        return None

    def calibrate(self, probe: Probe, report: Callable[[str], None] = lambda _: None) -> Method:
        """A copy whose fields fit the probed model; methods without calibration return themselves."""
        return self
