"""What the methods' examples are like, on a model of six layers."""

from __future__ import annotations

from depthdial.core.method import Dims, Method
from depthdial.methods import METHODS, method_named

DIMS = Dims(hidden=32, intermediate=64, eps=1e-6)


def example(name: str) -> Method:
    return method_named(name, dict(METHODS[name].example))


def has_parts(method: Method) -> bool:
    """Does it add modules to the base's layers? (Blocks of its own are beside them.)"""
    program = method.program(6)
    return any(method.parts(program.steps[s], DIMS) for s in program.routed)


WITH_PARTS = [name for name in METHODS if has_parts(example(name))]
