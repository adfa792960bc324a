"""One paper, one file. METHODS is the only list of them: `depthdial methods` and the tests read it.

The list is closed: a method that is not in it can be converted to and run, but not trained, saved or named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from depthdial.core.method import Method
from depthdial.methods.dense import Dense
from depthdial.methods.flexidepth import FlexiDepth
from depthdial.methods.highway import Highway
from depthdial.methods.mixture_of_depths import MixtureOfDepths
from depthdial.methods.random import Random
from depthdial.methods.skiplayer import SkipLayer
from depthdial.methods.static import Static

METHODS: dict[str, type[Method]] = {
    "flexidepth": FlexiDepth,
    "skiplayer": SkipLayer,
    "mixture_of_depths": MixtureOfDepths,
    "highway": Highway,
    "dense": Dense,
    "random": Random,
    "static": Static,
}


def method_named(name: str, fields: dict[str, Any] | None = None) -> Method:
    """A method from its name and JSON fields. Raises ValueError for an unknown name or field, or a value
    of the wrong kind."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    known = {f.name: f.default for f in dataclasses.fields(METHODS[name])}  # pyright: ignore[reportArgumentType]
    if unknown := set(fields or {}) - set(known):
        raise ValueError(
            f"method {name!r} has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    for field, value in (fields or {}).items():
        if value is not None and (wanted := _wanted(known[field])) and not wanted[1](value):
            raise ValueError(f"{field} of method {name!r} is {wanted[0]}, not {value!r}")
    try:
        return METHODS[name](**(fields or {}))
    except TypeError as error:
        raise ValueError(f"method {name!r} cannot be made of these fields: {error}") from None


def _wanted(default: Any) -> tuple[str, Callable[[Any], bool]] | None:
    """What a field must be, by its default, in words and as a check; None where that says nothing."""
    if isinstance(default, bool):
        return "true or false", lambda value: isinstance(value, bool)
    if isinstance(default, int | float):
        return "a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    return None


def name_of(method: Method) -> str:
    """The name under which a method stands in METHODS. ValueError for one that does not."""
    for name, kind in METHODS.items():
        if type(method) is kind:
            return name
    raise ValueError(
        f"{type(method).__name__} is not one of METHODS, and what is saved names one: {', '.join(METHODS)}"
    )
