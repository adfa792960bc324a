"""One paper, one file. METHODS is the only list of them: `depthdial methods` and the tests read it.

A method from elsewhere joins it by `register`, or by an entry point of its package in the group `depthdial.methods`.
One that is not in the list can be converted to and run, but not trained, saved or named.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from threading import RLock
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from depthdial.core.method import Method
from depthdial.methods.balcony import Balcony
from depthdial.methods.d3 import D3
from depthdial.methods.dense import Dense
from depthdial.methods.flexidepth import FlexiDepth
from depthdial.methods.highway import Highway
from depthdial.methods.mixture_of_depths import MixtureOfDepths
from depthdial.methods.random import Random
from depthdial.methods.readout import Readout
from depthdial.methods.skiplayer import SkipLayer
from depthdial.methods.static import Static

log = logging.getLogger(__name__)
GROUP = "depthdial.methods"


class Methods(Mapping[str, type[Method]]):
    """Methods by name: our own, then those of other packages, which are imported when the list is first read and not
    before, as they import this package themselves."""

    def __init__(self, own: dict[str, type[Method]]):
        self._known, self._own, self._lock, self._searched = dict(own), own, RLock(), False

    def __getitem__(self, name: str) -> type[Method]:
        return self._own[name] if name in self._own else self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def add(self, name: str, kind: type[Method]) -> None:
        """See `register`."""
        with self._lock:
            if self._known.get(name) is not kind:
                _check(name, kind)
                others = (other for other in self._known if other == name or self._known[other] is kind)
                if (other := next(others, None)) is not None:
                    taken = self._known[other]
                    where = f"{taken.__module__}.{taken.__name__} is there already as {other!r}"
                    raise ValueError(f"method {name!r}: {where}; choose another name")
                self._known[name] = kind

    def _all(self) -> dict[str, type[Method]]:
        with self._lock:
            if not self._searched:
                self._searched = True
                for entry in sorted(entry_points(group=GROUP)):
                    try:
                        self.add(entry.name, entry.load())
                    except Exception as error:  # of another's code: anything
                        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                        log.warning("the method %r of %s is left out: %s", entry.name, entry.value, why)
            return self._known


METHODS = Methods(
    {
        "flexidepth": FlexiDepth,
        "skiplayer": SkipLayer,
        "mixture_of_depths": MixtureOfDepths,
        "highway": Highway,
        "dense": Dense,
        "random": Random,
        "static": Static,
        "balcony": Balcony,
        "readout": Readout,
        "d3": D3,
    }
)


def register(name: str, kind: type[Method]) -> None:
    """Let a method of one's own be trained, saved, loaded by name, served and benched as those of METHODS are.

    kind: a frozen dataclass derived from `depthdial.core.method.Method`, with an `example`. What is registered is known
    to this process: a package makes its method known to all of them, and to the command line, by an entry point
    `name = "package.module:Class"` in the group `depthdial.methods`. Raises ValueError, one line, for what cannot be a
    method, and for a name that is taken.
    """
    METHODS.add(name, kind)


def _check(name: Any, kind: Any) -> None:
    """Raise ValueError for what cannot stand in METHODS."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise ValueError(f"a method's name is of small letters, digits and _, not {repr(name)[:80]}")
    if not isinstance(kind, type) or not issubclass(kind, Method):
        raise ValueError(f"method {name!r}: {repr(kind)[:80]} is no class derived from depthdial.core.method.Method")
    if inspect.isabstract(kind):
        raise ValueError(f"method {name!r}: {kind.__name__} lacks {', '.join(sorted(kind.__abstractmethods__))}")
    if "__dataclass_params__" not in vars(kind) or not kind.__dataclass_params__.frozen:  # pyright: ignore
        raise ValueError(
            f"method {name!r}: {kind.__name__} is no frozen dataclass; write @dataclass(frozen=True) above it"
        )
    try:
        kinds = get_type_hints(kind)
        for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
            _words(kinds[field.name])
    except (KeyError, NameError, IndexError) as error:
        raise ValueError(
            f"method {name!r}: a field cannot be saved: {error} is none of int, float, bool, str, Literal, tuple"
        ) from None
    if not kind.example:
        raise ValueError(
            f"method {name!r}: {kind.__name__} has no `example`: fields with which it skips some tokens and keeps "
            "others on a model of six layers"
        )
    _built(name, kind, dict(kind.example))


def method_named(name: str, fields: dict[str, Any] | None = None) -> Method:
    """A method from its name and JSON fields. Raises ValueError for an unknown name or field, or a value
    of the wrong kind."""
    if name not in METHODS:
        raise ValueError(
            f"unknown method {name[:80]!r}; choose one of {', '.join(METHODS)}, or install the package that brings it"
        )
    return _built(name, METHODS[name], fields or {})


def _built(name: str, kind: type[Method], fields: dict[str, Any]) -> Method:
    known = {f.name for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := set(fields) - known:
        odd = ", ".join(ascii(field)[1:-1] for field in sorted(unknown))[:200]  # which may come from a file
        raise ValueError(f"method {name!r} has no field {odd}; it has {', '.join(sorted(known))}")
    kinds = get_type_hints(kind)
    for field, value in fields.items():
        if not _fits(value, kinds[field]):
            raise ValueError(f"{field} of method {name!r} is {_words(kinds[field])}, not {repr(value)[:80]}")
    try:
        return kind(**fields)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"method {name!r} cannot be made of these fields: {error}") from None


def _fits(value: Any, kind: Any) -> bool:
    """Is a value from JSON of a field's declared type? A list may stand for a tuple, a whole number for a float."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and len(value) < 80  # which one, the method itself says
    if origin is tuple:
        if isinstance(value, str):  # on the command line one text stands for a list of it
            return inner[0] is str
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    """A field's declared type for a user."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return f"a list, each {_words(inner[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}[kind]


def name_of(method: Method) -> str:
    """The name under which a method stands in METHODS. ValueError for one that does not."""
    for name, kind in METHODS.items():
        if type(method) is kind:
            return name
    raise ValueError(
        f"{type(method).__name__} is not one of METHODS, and what is saved names one: {', '.join(METHODS)}; "
        "`depthdial.register` makes it one"
    )
