"""What a model's configuration alone says, before weights are fetched or read and before anything is trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from depthdial.core.dial import PromptBudget
from depthdial.models.base import Place, one_line, resolve_config
from depthdial.models.block import check_config
from depthdial.models.families import OWN, family_of, text_part
from depthdial.models.gguf import config_in
from depthdial.models.own import trained_with_routers
from depthdial.models.short_names import SHORT_NAMES


def config_ahead(name: str) -> PretrainedConfig | None:
    """The configuration of the model called `name`, fetched or read alone; None for a short name whose weights are not
    here yet, which is known to be computable. Raises ValueError as `load_base` does."""
    path = Path(os.path.expanduser(name))
    if name not in SHORT_NAMES and path.is_file():
        return config_in(path)
    place = resolve_config(name)
    return None if place is None else _read(name, place)


def check_ahead(config: PretrainedConfig) -> None:
    """Raise ValueError, naming the reason, for a model that cannot be converted or that the engine cannot run."""
    check_config(config, family_of(config))


def check_reading(name: str, prompt: PromptBudget) -> None:
    """Raise ValueError where the model called `name` has no untouched base to read a prompt with, as asked: it was
    trained with its routers (`models.dial`). Its configuration alone is read. Raises as `config_ahead`, too."""
    config: Any = config_ahead(name)
    if prompt != "same" and config is not None and config.model_type.startswith(OWN) and trained_with_routers(config):
        raise ValueError(
            f"{name} was trained with its own routers, so there is no untouched base to read prompts with: leave "
            f'prompt_budget out, or give "same", not {prompt}'
        )


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this configuration without weights (on the device meta): its layers and what they cost are known."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _read(name: str, place: Place) -> PretrainedConfig:
    with one_line(name, place, "config", "save or download it again"):
        return text_part(AutoConfig.from_pretrained(place.where, local_files_only=place.local, trust_remote_code=False))
