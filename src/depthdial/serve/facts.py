"""What the front must know of the model: told by the engine's process once it is loaded, and shown by /v1/models."""

from __future__ import annotations

import math
import os

from depthdial.core.dial import Curve
from depthdial.engine.llm import LLM
from depthdial.models.dial import reads_as_written
from depthdial.models.own import is_own
from depthdial.serve.wire import Message


def facts_of(llm: LLM) -> Message:
    """floor, prompt_floor: the least true cost that can be asked for, of what is written and of what is read; None
    where there is no curve to ask by, and where a model's own routers leave prompts no untouched base. stops: the
    costs that the dial can stand at, where it has stops; None where it has none."""
    curves = {} if llm.plugin is None else llm.plugin.curves
    text, curve = curves.get("text"), curves.get("generated") or curves.get("text")
    return {
        "layers": llm.layers,
        "always_on": llm.always_on,
        "context": llm.context,
        "budget": llm.budget,
        "prompt_budget": llm.prompt_budget,
        "floor": None if curve is None else _least(curve),
        "prompt_floor": None if reads_as_written(llm.model) else 1.0 if text is None else _least(text),
        "stops": _stops(llm, curve),
        "plugin": None if llm.plugin is None else llm.plugin.name,
        "chat": bool(llm.tokenizer.chat_template),
        "own": is_own(llm.model) and llm.plugin is None,
        "sampling": {name: getattr(llm.sampling.params, name) for name in ("temperature", "top_p", "top_k")},
        "pid": os.getpid(),
    }


def _stops(llm: LLM, curve: Curve | None) -> list[float] | None:
    if curve is None or llm.stop_of(curve.floor) is None:
        return None
    return [round(cost, 5) for cost in curve.costs] + [1.0] * (curve.costs[-1] < 1)


def _least(curve: Curve) -> float:
    return round(math.ceil(curve.floor * 1000) / 1000, 3)
