"""The untouched base of a model of one of our types as a stock Hugging Face model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthdial.models.convert import layers_of, revert
from depthdial.models.converted import converted_of
from depthdial.models.families import family_of
from depthdial.models.family import for_layers


def stock(model: PreTrainedModel) -> PreTrainedModel:
    """The base alone, the conversion taken back; where it visits blocks more than once, a model with a layer for each
    visit, the visit's own change merged, which shares all other weights."""
    return unrolled(model) if converted_of(model).program.loops else revert(model)


@torch.no_grad()
def unrolled(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model with a layer for each visit that the untouched base of a converted one makes."""
    converted, family = converted_of(model), family_of(model.config)
    program, layers = converted.program, layers_of(model)
    visits = [program.visits[v] for v in program.base_visits]
    fields = {name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "method")}
    fields = for_layers(fields, [visit.block for visit in visits])
    config: Any = family.example(**{**fields, "architectures": None})
    state = {
        name: tensor for name, tensor in model.state_dict().items() if ".parts." not in name and ".layers." not in name
    }
    for i, visit in enumerate(visits):
        weights = {n: t for n, t in layers[visit.block].state_dict().items() if "parts" not in n.split(".")}
        for s in (s for s in visit.steps if program.steps[s].relaxed):
            for last, change in converted.method.delta(converted.units[s].parts, s).items():
                name = next(name for name in weights if name.endswith(f".{last}.weight"))
                weights[name] = change.merged(weights[name])
        state |= {f"{model.base_model_prefix}.layers.{i}.{name}": weight for name, weight in weights.items()}
    whole = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole.eval()
