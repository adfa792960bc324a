"""What the methods' examples are like, on a model of six layers."""

from __future__ import annotations

from torch import nn

from depthdial.core.method import Dims, Method
from depthdial.methods import METHODS, method_named

DIMS = Dims(hidden=32, intermediate=64, eps=1e-6, linears={"q_proj": (32, 32)})


def example(name: str) -> Method:
    return method_named(name, dict(METHODS[name].example))


def has_parts(method: Method) -> bool:
    """Does it add linear layers to the base's layers? (Blocks of its own are beside them.)"""
    program = method.program(6)
    parts = (part for s in program.routed for part in method.parts(program.steps[s], DIMS).values())
    return any(isinstance(module, nn.Linear) for part in parts for module in part.modules())


WITH_PARTS = [name for name in METHODS if has_parts(example(name))]
