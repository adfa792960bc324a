"""One paper, one file. METHODS is the only list of them; docs and tests are generated from it."""

from __future__ import annotations

import dataclasses
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
    """A method from its name and JSON fields. Raises ValueError for an unknown name or field."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    known = {f.name for f in dataclasses.fields(METHODS[name])}  # pyright: ignore[reportArgumentType]
    if unknown := set(fields or {}) - known:
        raise ValueError(
            f"method {name!r} has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    return METHODS[name](**(fields or {}))


def name_of(method: Method) -> str:
    """The name under which a method stands in METHODS."""
    return next(name for name, kind in METHODS.items() if type(method) is kind)
