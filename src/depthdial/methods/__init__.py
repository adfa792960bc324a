"""One paper, one file. METHODS is the only list of them: `depthdial methods` and the tests read it.

The list is closed: a method that is not in it can be converted to and run, but not trained, saved or named.
"""

from __future__ import annotations

import dataclasses
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
        raise ValueError(f"unknown method {name[:80]!r}; choose one of {', '.join(METHODS)}")
    known = {f.name for f in dataclasses.fields(METHODS[name])}  # pyright: ignore[reportArgumentType]
    if unknown := set(fields or {}) - known:
        odd = ", ".join(ascii(field)[1:-1] for field in sorted(unknown))[:200]  # which may come from a file
        raise ValueError(f"method {name!r} has no field {odd}; it has {', '.join(sorted(known))}")
    kinds = get_type_hints(METHODS[name])
    for field, value in (fields or {}).items():
        if not _fits(value, kinds[field]):
            raise ValueError(f"{field} of method {name!r} is {_words(kinds[field])}, not {repr(value)[:80]}")
    try:
        return METHODS[name](**(fields or {}))
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
        f"{type(method).__name__} is not one of METHODS, and what is saved names one: {', '.join(METHODS)}"
    )
