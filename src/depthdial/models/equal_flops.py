"""Models of equal cost: the dense ones a routed model must beat, and other methods beside it.

Cost is multiply-accumulates of linear weights per token at a method's target density, with K and V of skipped tokens,
routers and the LM head counted (`core.cost`). Attention over the context is not in it: see `attended`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from depthdial.core.cost import Ledger
from depthdial.core.method import Method
from depthdial.methods import Dense
from depthdial.models.converted import converted_of
from depthdial.models.own import own_types
from depthdial.models.scratch import FFN_STEP, Spec


def ledger_of(spec: Spec, method: Method) -> Ledger:
    """The price list of a model of this size routed by `method`; no weights are made."""
    with torch.device("meta"):
        kind: Any = own_types("llama").model
        return converted_of(kind(spec.config(method))).ledger


def macs(spec: Spec, method: Method, density: float | None = None) -> float:
    """Multiply-accumulates per token where each routed step runs for a share `density` of the tokens.

    None is the density that the method's fields ask for; ValueError for a method that asks for none.
    """
    return ledger_of(spec, method).expected(_target(method) if density is None else density)


def equal(cost: float, spec: Spec, method: Method, layers: int | None = None) -> Spec:
    """`spec` with the MLP's width that makes a model routed by `method` cost `cost` multiply-accumulates per token.

    layers: how many; None takes the number that comes nearest with the width as it is, so that the width changes least.
    The width moves in steps of FFN_STEP: of a model of ten million weights, a few thousandths. Raises ValueError where
    even the narrowest MLP costs more.
    """
    spec = dataclasses.replace(spec, ffn=spec.intermediate)
    if layers is None:
        layers = _nearest(cost, spec, method)
    thin, wider = (dataclasses.replace(spec, layers=layers, ffn=n * FFN_STEP) for n in (1, 2))
    least = macs(thin, method)
    steps = round((cost - least) / (macs(wider, method) - least))
    if steps < 0:
        raise ValueError(f"{layers} layers of width {spec.width} cost {least:.3g}, more than {cost:.3g}: ask for fewer")
    return dataclasses.replace(thin, ffn=FFN_STEP * (1 + steps))


def shallow(spec: Spec, method: Method) -> Spec:
    """The dense model of equal cost with the layers of `spec`, but fewer of them; what is left over of a layer widens
    or narrows all MLPs a little."""
    return equal(macs(spec, method), spec, Dense())


def wide(spec: Spec, method: Method) -> Spec:
    """The dense model of equal cost that is as deep as a token goes in `spec` on average; its MLPs are wider."""
    program = method.program(spec.layers)
    routed = {program.visit_of[s] for s in program.routed}
    depth = max(1, round(spec.layers - (1 - _target(method)) * len(routed)))
    return equal(macs(spec, method), spec, Dense(), depth)


def attended(spec: Spec, method: Method, context: int) -> float:
    """Multiply-accumulates of attention per token, the mean over a sequence of `context` tokens at target density; an
    upper bound where tokens that do not run a step leave no key."""
    ledger, density = ledger_of(spec, method), _target(method)
    shares = (density if step.routed != "no" else 1.0 for step in ledger.program.steps)
    return sum(s * work.unit.attend * (context + 1) / 2 for s, work in zip(shares, ledger.steps, strict=True))


def _target(method: Method) -> float:
    if method.target is None:
        raise ValueError(f"{type(method).__name__} has no target density, and so no cost of its own")
    return method.target


def _nearest(cost: float, spec: Spec, method: Method) -> int:
    """The number of layers whose cost comes nearest; a method may need some before it can route any."""
    best, gap, count = 0, float("inf"), 0
    while True:
        count += 1
        try:
            over = macs(dataclasses.replace(spec, layers=count), method) - cost
        except ValueError:
            if count > spec.layers:
                raise
            continue
        if abs(over) < gap:
            best, gap = count, abs(over)
        if over > 0:
            return best
