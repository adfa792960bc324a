"""Set the dial of a loaded model: from a budget to a logit offset, by the plug-in's measured curves."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from transformers import PretrainedConfig, PreTrainedModel

from depthdial.core.dial import Curve
from depthdial.core.route import Route
from depthdial.models.checkpoint import Plugin

Kind = Literal["text", "generated"]


class Turned(NamedTuple):
    """What the dial was last set to by a budget: `save_pretrained` keeps it."""

    budget: float | None
    offset: float


def offset_for(model: PreTrainedModel, budget: float | None, kind: Kind = "text") -> float:
    """The logit offset for a requested mean true cost of `kind` tokens ("text": prompts and scored text).

    None asks for the plug-in's recommended budget, or for its trained form (offset 0, or where a saved model's dial
    stood) if it recommends none; 1.0 is the untouched base. Raises ValueError for a budget outside the curve, or for
    one below 1.0 without a plug-in.
    """
    plugin = getattr(model, "plugin", None)
    if budget is None:
        if not isinstance(plugin, Plugin) or plugin.recommended is None:
            return _saved(model.config)
        budget = plugin.recommended
    return offset_of(plugin, budget, kind)


def offset_of(plugin: Plugin | None, budget: float, kind: Kind = "text") -> float:
    """The logit offset for a budget by a plug-in's curves. Raises ValueError as `offset_for`."""
    return math.inf if budget == 1.0 else _curve(plugin, kind, budget).offset(budget)


def set_budget(model: PreTrainedModel, budget: float | None, kind: Kind = "text") -> None:
    """Turn the dial of a converted model; see `offset_for`."""
    route, offset = model.route, offset_for(model, budget, kind)
    assert isinstance(route, Route)
    route.offset = offset
    plugin = getattr(model, "plugin", None)
    if budget is None and isinstance(plugin, Plugin):
        budget = plugin.recommended
    vars(model)["turned"] = Turned(budget, offset)


def _saved(config: PretrainedConfig) -> float:
    """Where the dial of a saved model stood that had no budget, or all of it; 0 for any other model."""
    return math.inf if getattr(config, "budget", None) == 1.0 else getattr(config, "offset", None) or 0.0


def _curve(plugin: Plugin | None, kind: Kind, budget: float) -> Curve:
    curves = plugin.curves if isinstance(plugin, Plugin) else {}
    if not curves:
        raise ValueError(
            f"budget {budget} needs a plug-in with a budget curve, and this model has none; "
            "use budget 1.0, or give a plug-in trained by `depthdial train`"
        )
    return curves.get(kind) or next(iter(curves.values()))
