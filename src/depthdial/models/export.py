"""Write a converted model as one folder: the base's weights, routers, adapters, dial and tokenizer, under our own type.

Whoever has depthdial installed opens it with `AutoModelForCausalLM` and runs it in vLLM (`serve.vllm`); stock
transformers refuses it by its type.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthdial.core.dial import Curve
from depthdial.methods import name_of
from depthdial.models.checkpoint import Plugin
from depthdial.models.convert import method_of
from depthdial.models.dial import offset_for
from depthdial.models.families import OWN
from depthdial.models.gguf import quiet
from depthdial.models.modes import readable
from depthdial.models.own import TYPES, is_own

CONFIG_FILE = "config.json"


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    budget: float | None = None,
    files: Mapping[str, str] | None = None,
    auto_map: Mapping[str, str] | None = None,
) -> Path:
    """Write a model that `load` gave, in its own dtype, to a new folder; whole or not at all. Returns the folder.

    budget: what the dial is set to when the folder is opened; None for the plug-in's recommended one. files: texts to
    put beside the weights, by name. auto_map: for config.json, as the hub knows it. Raises ValueError for a budget the
    plug-in cannot keep, a family without a type of its own, or a folder that holds something.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose another one")
    config = own_config(model, budget)
    if auto_map:
        config.auto_map = dict(auto_map)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet():
            _whole(model, config).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        for name, text in (files or {}).items():
            (scratch / name).write_text(text)
        readable(scratch)
        if folder.exists():
            folder.rmdir()
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def own_config(model: PreTrainedModel, budget: float | None = None) -> Any:
    """The configuration of the model as one of our types, its dial at `budget`. Raises ValueError as `export`."""
    plugin = getattr(model, "plugin", None)
    plugin = plugin if isinstance(plugin, Plugin) else None
    offset_for(model, budget)  # refuses a budget that cannot be kept
    kind = model.config.model_type.removeprefix(OWN)
    if kind not in TYPES:
        raise ValueError(f"models of type {kind!r} cannot be exported yet; known: {', '.join(TYPES)}")
    method = method_of(model)
    fields = {name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "dtype")}
    kept = {
        "method": {"name": name_of(method), **dataclasses.asdict(method)},  # pyright: ignore[reportArgumentType]
        "budget": budget if budget is not None or plugin is None else plugin.recommended,
        "curves": None if plugin is None else {of: _curve(curve) for of, curve in plugin.curves.items()},
        "base": None if plugin is None else dataclasses.asdict(plugin.base),
        "architectures": [TYPES[kind][1].__name__],
        "dtype": model.dtype,
    }
    return TYPES[kind][0](**{**fields, **kept})


def _curve(curve: Curve) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(curve).items()}


def _whole(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """The model as one of our types: the very same tensors."""
    if is_own(model):
        model.config = config
        return model
    with torch.device("meta"):
        whole = TYPES[config.model_type.removeprefix(OWN)][1](config)
    whole.load_state_dict(model.state_dict(), strict=True, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole
