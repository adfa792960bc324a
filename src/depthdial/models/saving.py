"""What `save_pretrained` of a converted model writes: the model as one of our types (`own`), so that it opens again.

Hugging Face's Trainer, trl and `push_to_hub` save by it, too. The stock type would open without routers. This file is
*not* about plug-ins (`checkpoint`) or all that the hub wants (`export`).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from depthdial.core.dial import PromptBudget
from depthdial.core.settings import Settings
from depthdial.methods import name_of
from depthdial.models.converted import converted_of
from depthdial.models.families import OWN
from depthdial.models.generating import Turned
from depthdial.models.offloaded import brought

_MOVING = ("budget", "offset", "prompt_budget", "auto_map", "curves", "base")
"""What may change in a model that is of one of our types already."""


class Saving:
    """A converted model's `save_pretrained`."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`. Raises ValueError for a dial that stands at an offset per row."""
        model = self.model
        if getattr(model, "_hf_peft_config_loaded", False):  # then only the adapters are written
            type(model).save_pretrained(model, save_directory, **kwargs)
            return
        whole = as_own(model, own_config(model), weights=kwargs.get("state_dict") is None)
        type(whole).save_pretrained(whole, save_directory, **kwargs)


def own_config(model: PreTrainedModel) -> Any:
    """The configuration of a converted model as one of our types, with its dial as it stands now."""
    made = CONFIG_MAPPING[f"{OWN}{model.config.model_type.removeprefix(OWN)}"]
    converted = converted_of(model)
    plugin, method = converted.plugin, converted.method
    assert dataclasses.is_dataclass(method)
    fields = {name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "dtype")}
    known = None if plugin is None else plugin.to_json()
    budget, offset = _dial(model)
    kept = {
        "method": {"name": name_of(method), **dataclasses.asdict(method)},
        "budget": budget,
        "offset": offset,
        "prompt_budget": _prompt_budget(converted.settings, converted.turned),
        "curves": None if known is None else known["curves"],
        "base": None if known is None else known["base"],
        "dtype": model.dtype,
    }
    config: Any = made(**{**fields, **kept})
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[made]
    config.architectures = [kind.__name__]
    return config


def as_own(model: PreTrainedModel, config: Any, weights: bool = True) -> PreTrainedModel:
    """The model as the type of `config`: the very same tensors, where they are at hand. weights: or without values, for
    a state that comes from elsewhere (sharded training)."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if type(model) is kind:
        model.config.update({name: value for name, value in config.to_dict().items() if name in _MOVING})
        return model
    with torch.device("meta"):
        whole = kind(config)
    if weights:
        state = {name: brought(model, name, tensor) for name, tensor in model.state_dict().items()}
        whole.load_state_dict(state, strict=True, assign=True)
    whole = whole if weights else whole.to(model.dtype)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole


def _prompt_budget(settings: Settings, turned: Turned | None) -> PromptBudget:
    """That of the configuration. ValueError for a dial that stands where no budget has put it."""
    read = settings.read_offset
    if turned is not None and read == turned.dials.read:
        return turned.prompt_budget
    if read in (None, math.inf):
        return "same" if read is None else 1.0
    raise ValueError("read_offset stands at a number, which no folder can hold; set prompt_budget (`load`)")


def _dial(model: PreTrainedModel) -> tuple[float | None, float | None]:
    """Budget and offset for the configuration: an offset only where no budget stands for it."""
    converted = converted_of(model)
    turned, offset = converted.turned, converted.settings.offset
    if isinstance(offset, torch.Tensor) and offset.ndim:
        raise ValueError("the dial stands at an offset per row, which no folder can hold; set it to a number (`load`)")
    offset = float(offset)
    if turned is not None and turned.offset == offset:
        return turned.budget, None
    if offset == math.inf:
        return 1.0, None
    return None, offset or None
