"""What an adaptive plug-in must beat at the same speed: layers drawn at random, at the rate the plug-in really had."""

from __future__ import annotations

import math
from typing import Any

import torch

from depthdial.core.cost import Ledger
from depthdial.core.dial import Curve
from depthdial.core.program import Program
from depthdial.engine.llm import LLM
from depthdial.methods import Random
from depthdial.models import load_base
from depthdial.models.checkpoint import Plugin, cast_parts
from depthdial.models.convert import convert
from depthdial.models.converted import converted_of
from depthdial.models.fingerprint import fingerprint
from depthdial.models.own import is_own
from depthdial.models.stock import stock


def random_like(program: Program, name: str, dtype: str, device: str, seed: int) -> tuple[Any, Any]:
    """A base converted to random skipping of the layers that `program` may leave out, and its tokenizer; with adapters
    of the usual size at zero, or none where the model is of one of our types. Its curve is computed, not measured: cost
    is linear in the rate. Good for speed only."""
    base, tokenizer = load_base(name, dtype, device)
    adapters = {}
    if is_own(base):
        base = stock(base)
        adapters = {"adapter_ratio": 0}
    steps = range(program.routed[0], len(program.steps)) if program.jumps else program.routed
    visits = [program.visit_of[s] for s in steps if program.steps[s].base]
    layers = sorted({program.base_visits.index(visit) for visit in visits})
    first, last = min(layers), max(layers) + 1
    but = tuple(layer for layer in range(first, last) if layer not in layers)
    method = Random(first=first, last=last, but=but, rate=0.5, seed=seed, **adapters)
    model: Any = convert(base, method)
    cast_parts(model, base.dtype)
    curve = _curve(converted_of(model).ledger)
    converted_of(model).plugin = Plugin("random", method, fingerprint(model), {"generated": curve, "text": curve})
    return model.eval(), tokenizer


def budget_for(llm: LLM, cost: float) -> float:
    """The budget of `llm` nearest to a true cost."""
    curves = {} if llm.plugin is None else llm.plugin.curves
    curve = curves.get("generated") or curves.get("text")
    if curve is None:
        raise ValueError("this plug-in has no budget curve; train it with `depthdial train`")
    return min(max(cost, curve.floor), 1.0 - 1e-6)


def _curve(ledger: Ledger) -> Curve:
    """Cost by offset for a rate of 1/2 at offset 0: a share sigmoid(offset) of the routed layers runs."""
    savings = sum(ledger.saved) / ledger.dense
    offsets = torch.linspace(-6, 6, 121).tolist()
    return Curve.fit([(offset, 1 - savings / (1 + math.exp(offset)), 0.0) for offset in offsets])
