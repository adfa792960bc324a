"""Set the dials of a loaded model: from budgets to logit offsets, by the plug-in's measured curves.

There are two: what is *read* (a prompt) may cost `prompt_budget`, what is *written* `budget`.
"""

from __future__ import annotations

import math
from typing import Literal

from transformers import PretrainedConfig, PreTrainedModel

from depthdial.core.dial import Curve, Dials, PromptBudget, prompt_budget
from depthdial.models.checkpoint import Plugin, plugin_of
from depthdial.models.converted import converted_of
from depthdial.models.families import OWN
from depthdial.models.generating import Turned

Kind = Literal["text", "generated"]


def dials_for(model: PreTrainedModel, budget: float | None, prompt: PromptBudget | None = None) -> Dials:
    """The offsets for a text whose prompt may cost `prompt` and whose generated tokens `budget`, relative to dense.

    budget: as in `offset_for`. prompt: as in `prompt_budget_for`. A budget is held where the model has a curve for it
    and skipped tokens leave their K and V: without these, a token could ask for what no earlier one has left.
    Raises ValueError as these two, and for a prompt that leaves no K and V where later tokens need them.
    """
    prompt = prompt_budget_for(model, prompt)
    written, hold = offset_for(model, budget, "generated"), None
    plugin, converted = plugin_of(model), converted_of(model)
    if budget is None and plugin is not None:
        budget = plugin.recommended
    if budget is not None and budget != 1.0 and not converted.method.by_row and not converted.program.gaps:
        hold = _curve(plugin, "generated", budget).hold(budget)
    if hold is not None:
        written = hold.offset(hold.begin())
    read = written if prompt == "same" else read_offset_of(plugin, prompt)
    if converted.method.by_row and read < written:
        raise ValueError(
            f"a prompt read at {prompt} leaves no K and V in layers that are run to write at {budget}: choose a "
            'prompt_budget of at least that, or "same"'
        )
    return Dials(written, None if prompt == "same" else read, hold)


def prompt_budget_for(model: PreTrainedModel, prompt: PromptBudget | None = None) -> PromptBudget:
    """What prompts may cost in a converted model: as asked, checked. None is what a saved model was set to, else 1.0,
    or "same" for a model with its own routers, which has no untouched base to read with. Raises ValueError for what
    cannot be had."""
    own, blocks = has_own_routers(model), bool(converted_of(model).program.own)
    if prompt is None:
        prompt = getattr(model.config, "prompt_budget", None)
    if prompt is None:
        return "same" if reads_as_written(model) else 1.0
    prompt = prompt_budget(prompt)
    if blocks and prompt != "same":
        raise ValueError(
            "an exit's own block sees what was read through that exit alone: leave prompt_budget out, or give "
            f'"same", not {prompt}'
        )
    if own and prompt != "same":
        raise ValueError(
            f"this model was trained with its own routers, so there is no untouched base to read prompts with: leave "
            f'prompt_budget out, or give "same", not {prompt}'
        )
    return prompt


def reads_as_written(model: PreTrainedModel) -> bool:
    """Is there but one way to read a prompt: as what follows it is written?"""
    return has_own_routers(model) or bool(converted_of(model).program.own)


def has_own_routers(model: PreTrainedModel) -> bool:
    """Were a converted model's weights trained together with its routers? Then running all layers is not its base. One
    of our types is taken for such where it knows of no base and was not saved to read its prompts otherwise; but all
    loops of one that has them are its base."""
    converted = converted_of(model)
    if converted.plugin is not None or not converted.program.skips or converted.program.loops:
        return False
    of_own_type = model.config.model_type.startswith(OWN) and model.config.prompt_budget in (None, "same")
    return not converted.method.frozen or of_own_type


def offset_for(model: PreTrainedModel, budget: float | None, kind: Kind = "text") -> float:
    """The logit offset for a requested mean true cost of `kind` tokens ("text": prompts and scored text).

    None asks for the plug-in's recommended budget, or for its trained form (offset 0, or where a saved model's dial
    stood) if it recommends none; 1.0 is the untouched base. Raises ValueError for a budget outside the curve, or for
    one below 1.0 without a plug-in.
    """
    plugin = plugin_of(model)
    if budget is None:
        if plugin is None or plugin.recommended is None:
            return _saved(model.config)
        budget = plugin.recommended
    return offset_of(plugin, budget, kind)


def offset_of(plugin: Plugin | None, budget: float, kind: Kind = "text") -> float:
    """The logit offset for a budget by a plug-in's curves. Raises ValueError as `offset_for`."""
    return math.inf if budget == 1.0 else _curve(plugin, kind, budget).offset(budget)


def read_offset_of(plugin: Plugin | None, prompt: float) -> float:
    """The logit offset of what is read at a prompt budget. Raises ValueError as `offset_for`, and names that."""
    try:
        return offset_of(plugin, prompt, "text")
    except ValueError as error:
        raise ValueError(f"prompt_budget: {error}") from None


def stop_for(model: PreTrainedModel, budget: float | None) -> float | None:
    """The mean true cost of the stop that written tokens run at for a budget, the next lower one. None where the dial
    has no stops, or moves from one to the other to hold the budget. Raises ValueError as `offset_for`."""
    plugin = plugin_of(model)
    budget = plugin.recommended if budget is None and plugin is not None else budget
    if budget is None or plugin is None or not plugin.curves or dials_for(model, budget, "same").hold is not None:
        return None
    return _curve(plugin, "generated", budget).stop(budget)


def set_budget(
    model: PreTrainedModel, budget: float | None, kind: Kind = "text", prompt: PromptBudget | None = None
) -> None:
    """Turn the dials of a converted model; see `offset_for` and `prompt_budget_for`. kind: of the tokens that a pass
    of `forward` is given; `generate` sets the dial itself, token by token."""
    offset, dials = offset_for(model, budget, kind), dials_for(model, budget, prompt)
    converted, plugin, prompt = converted_of(model), plugin_of(model), prompt_budget_for(model, prompt)
    converted.set(offset=offset, read_offset=dials.read)
    if budget is None and plugin is not None:
        budget = plugin.recommended
    converted.turned = Turned(budget, offset, prompt, dials)


def _saved(config: PretrainedConfig) -> float:
    """Where the dial of a saved model stood that had no budget, or all of it; 0 for any other model."""
    return math.inf if getattr(config, "budget", None) == 1.0 else getattr(config, "offset", None) or 0.0


def _curve(plugin: Plugin | None, kind: Kind, budget: float) -> Curve:
    curves = {} if plugin is None else plugin.curves
    if not curves:
        raise ValueError(
            f"budget {budget} needs a plug-in with a budget curve, and this model has none; "
            "use budget 1.0, or give a plug-in trained by `depthdial train`"
        )
    return curves.get(kind) or next(iter(curves.values()))
