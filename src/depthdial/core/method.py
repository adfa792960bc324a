"""A method is one paper as one frozen dataclass: its fields are hyper-parameters, its functions are equations.

A method owns no weights and no state: parts and the route are passed in. It knows nothing of how it is executed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor, nn

from depthdial.core.decision import Decision, Site
from depthdial.core.gate import Gate
from depthdial.core.route import Route

Parts = Mapping[str, nn.Module] | nn.ModuleDict
"""The parts of one site, by name."""


@dataclass(frozen=True)
class Dims:
    """The sizes a part may depend on."""

    hidden: int
    intermediate: int
    eps: float = 1e-5


def span(first: int | None, last: int | None, but: Sequence[int], depth: int) -> list[int]:
    """The layers first..last-1, without those in `but`, of a model with `depth` layers; by default the upper half.
    Raises ValueError if the model has no such layers."""
    begin, end = depth // 2 if first is None else first, depth if last is None else last
    if not 0 <= begin < end <= depth:
        raise ValueError(f"routed layers {begin} to {end - 1} do not fit a model of {depth} layers")
    return [layer for layer in range(begin, end) if layer not in but]


class Probe(Protocol):
    """What a training-free method may ask of a model while it calibrates itself (implemented in `models`)."""

    depth: int

    def block_influence(self) -> Sequence[float]:
        """1 - mean cosine similarity of each layer's input and output (ShortGPT, arXiv 2403.03853, eq. 1)."""
        ...

    def divergence(self, dropped: Sequence[int]) -> float:
        """Mean KL in nats per token from the base to the base without the layers `dropped`."""
        ...


class Method(ABC):
    """What is decided at each site, and what replaces a unit that does not run."""

    units: tuple[str, ...] = ("layer",)
    """What is skipped: ("layer",), ("attn",), ("mlp",) or ("attn", "mlp"); a field where a paper leaves the choice."""
    kv: ClassVar[Literal["project", "none", "evict"]] = "project"
    """What a skipped token leaves in the cache: its K and V; nothing, as no token of the row ever asks for them; or
    nothing, and later tokens of the row must do without."""
    skips: ClassVar[bool] = True
    """False: every unit runs for every token and is weighed only, so that nothing is saved."""
    grain: ClassVar[Literal["static", "step", "sequence", "token"]] = "token"
    """The finest thing a decision depends on. Only "static" is read: its dial is measured by whole layers, and its
    decisions are asked for once, not for each place. The others are told to readers; executors treat them alike."""
    fixed_input: bool = False
    """A control, and a field of every method with a router: routers are fed a constant vector of ones, so that each
    learns one rate for its layer and cannot see the token. What seeing it is worth is the difference."""
    reads_input: ClassVar[bool] = True
    """False: `decide` looks at tokens, places and layers only, so an executor may ask for all layers before a pass."""
    budgeted: ClassVar[Mapping[str, object]] = {}
    """Fields that trained best where a budget is held (docs/log.md): what `depthdial train` sets unless told otherwise.
    The fields' own defaults are the paper's."""
    example: ClassVar[Mapping[str, object]] = {}
    """Fields with which it skips some tokens and keeps others on a model of 6 layers: the laws run it with them, and
    refuse a method that skips nothing there, as they would say nothing of it."""
    frozen: ClassVar[bool] = True
    """False: the base is trained too."""

    @property
    def steps(self) -> bool:
        """Do decisions depend on nothing but the layer and the dial, so that the dial acts in steps?"""
        return self.grain == "static" or self.fixed_input

    def layers(self, depth: int) -> Sequence[int]:
        """The layers that get decisions, of a model with `depth` layers; the others always run."""
        return range(depth)

    def always_on(self, depth: int) -> int:
        """How many of `depth` layers run for every token, whole or in part: the least depth there can be."""
        whole = "layer" in self.units or {"attn", "mlp"} <= set(self.units)
        return depth - len(self.layers(depth)) if whole and self.skips else depth

    def parts(self, site: Site, dims: Dims) -> dict[str, nn.Module]:
        """Fresh trainable parts (router, adapter, ...) for one site. Called once, at conversion."""
        return {}

    @abstractmethod
    def decide(self, parts: Parts, x: Tensor, site: Site, route: Route) -> Decision:
        """The decision for each token. x: the unit's (normed) input [B, T, d]."""

    def keeps(self, layers: Sequence[int], route: Route) -> Tensor | None:
        """`keep` of what `decide` says at the first unit of each of `layers`, bool [layers, B, T], for a method that
        does not read its input; None: `decide` must be asked layer by layer."""
        return None

    def bypass(self, parts: Parts, x: Tensor, site: Site) -> Tensor | None:
        """What a skipped token gets instead of the unit's update, [B, T, d]; None is nothing (identity)."""
        return None

    def gate(self, parts: Mapping[str, Parts], layer: int) -> Gate | None:
        """The layer's `decide` and `bypass` for executors that fuse them; None: only those two describe the method.
        parts: those of the layer's sites, by unit."""
        return None

    @property
    def target(self) -> float | None:
        """Share of tokens that run a routed site, as the fields ask for it; None where they do not say."""
        return None

    def loss(self, route: Route) -> Tensor | None:
        """Auxiliary loss per token, fp32 [B, T]; normalised like the LM loss by whoever trains."""
        return None

    def calibrate(self, probe: Probe, report: Callable[[str], None] = lambda _: None) -> Method:
        """A copy whose fields fit the probed model; methods without calibration return themselves."""
        return self
