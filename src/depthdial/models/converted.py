"""What a conversion adds to a Hugging Face model, as one value: method, program, prices, plug-in, routed units.

A model in memory carries it as `model.converted`. Settings are replaced as a whole; what a pass does is its thread's
own, so that several threads may run one model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel

from depthdial.core.cost import Ledger
from depthdial.core.layers import Part
from depthdial.core.method import Method
from depthdial.core.program import Program
from depthdial.core.route import Route
from depthdial.core.routed import Pass, Routed
from depthdial.core.settings import Settings


class Removable(Protocol):
    def remove(self) -> None: ...


class Threads(threading.local):
    """What belongs to one thread: the pass under way in it, its last pass, and its own settings."""

    def __init__(self) -> None:
        self.running: Pass | None = None
        self.last: Pass | None = None
        self.settings: Settings | None = None
        self.dials: Any = None
        """Of a `generate` under way (`models.generating`)."""

    def __reduce__(self) -> tuple[type[Threads], tuple[()]]:
        return Threads, ()  # a copy of a model has run nothing yet


class Turn:
    """What one thread does at a time; a copy of a model has a turn of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


class Converted:
    """All that is known of a converted model beside its weights."""

    def __init__(self, method: Method, program: Program, ledger: Ledger, frozen: bool):
        self.method, self.program, self.ledger, self.frozen = method, program, ledger, frozen
        self.plugin: Any = None
        """`models.checkpoint.Plugin`; None where no plug-in was loaded."""
        self.turned: Any = None
        """`models.generating.Turned`: what budgets last set the dials to."""
        self.units: dict[int, Routed] = {}
        """By step: all that may have parts, and where tokens jump all units."""
        self.own = nn.ModuleList()
        """The method's own blocks, in the order of `Program.own`."""
        self.threads = Threads()
        self.narrowing = Turn()
        """Of the method's own blocks, whose weights are replaced while they run in another dtype."""
        self.route = Route(self._last, self._prices)
        self._settings = Settings()
        self._additions: list[Removable] = []

    def __repr__(self) -> str:
        routed, visits = len({self.program.visit_of[s] for s in self.program.routed}), len(self.program.visits)
        dial = "" if self.plugin is None or not self.plugin.curves else ", with a dial"
        return f"Converted({type(self.method).__name__}, {routed} of {visits} layers{dial})"

    @property
    def settings(self) -> Settings:
        """Of the coming passes in this thread."""
        return self.threads.settings or self._settings

    def set(self, **changes: Any) -> None:
        """Change settings of all coming passes, in every thread that has none of its own (`using`)."""
        self._settings = replace(self._settings, **changes)

    @contextmanager
    def using(self, **changes: Any) -> Iterator[None]:
        """Other settings for the passes of this thread, until the block ends."""
        before = self.threads.settings
        self.threads.settings = replace(self.settings, **changes)
        try:
            yield
        finally:
            self.threads.settings = before

    @property
    def routed(self) -> dict[int, Routed]:
        """The units with a decision, by step."""
        return {s: self.units[s] for s in self.program.routed}

    @property
    def parted(self) -> dict[int, Routed]:
        """The units that may have parts, by step."""
        return {s: self.units[s] for s in self.program.parted}

    def passing(self) -> Pass:
        """The pass under way in this thread."""
        running = self.threads.running
        assert running is not None, "a pass begins at the decoder"
        return running

    def add(self, addition: Removable) -> None:
        """A hook or the like that goes when the conversion is taken back."""
        self._additions.append(addition)

    def remove(self) -> None:
        """Leave the model as it was."""
        for unit in self.units.values():
            unit.remove()
        for addition in self._additions:
            addition.remove()

    def _last(self) -> Pass | None:
        return self.threads.last

    def _prices(self) -> Ledger:
        return self.ledger


def is_converted(model: Any) -> bool:
    return isinstance(getattr(model, "converted", None), Converted)


def converted_of(model: Any) -> Converted:
    """What a conversion added to a model. ValueError for one that is not converted."""
    converted = getattr(model, "converted", None)
    if not isinstance(converted, Converted):
        raise ValueError("this model is not converted; call convert(model, method) or load(...) first")
    return converted


def unwrapped(model: nn.Module) -> Any:
    """The Hugging Face model inside of what accelerate (DDP, compile) or peft put around it."""
    inner: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner.get_base_model() if type(inner).__module__.partition(".")[0] == "peft" else inner


class Fresh:
    """A model's `_init_weights`, which knows our parts, too: transformers asks for their layers, and for a part itself
    only where it has a weight of its own."""

    def __init__(self, model: PreTrainedModel, converted: Converted):
        self.model, self.converted = model, converted

    def __call__(self, module: nn.Module) -> None:
        for unit in self.converted.units.values():
            for part in unit.parts.values():
                if isinstance(part, Part) and any(module is each for each in (part, *part.children())):
                    part.reset_parameters()
                    return
        type(self.model)._init_weights(self.model, module)
