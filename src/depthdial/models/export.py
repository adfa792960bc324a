"""Write a converted model as one folder: the base's weights, routers, adapters, dial and tokenizer, under our own type.

Whoever has depthdial installed opens it with `AutoModelForCausalLM` and runs it in vLLM (`serve.vllm`); stock
transformers refuses it by its type.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthdial.core.whole import disk_errors, sync
from depthdial.models import saving
from depthdial.models.checkpoint import plugin_of
from depthdial.models.dial import offset_for
from depthdial.models.gguf import quiet
from depthdial.models.modes import readable

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
    plug-in cannot keep, or a folder that holds something.
    """
    folder = Path(folder)
    check_free(folder)
    config = own_config(model, budget)
    if auto_map:
        config.auto_map = dict(auto_map)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet(), disk_errors(lambda: f"free some space for {folder} and export again"):
            whole = saving.as_own(model, config)
            type(whole).save_pretrained(whole, scratch)
            tokenizer.save_pretrained(scratch)
            for name, text in (files or {}).items():
                (scratch / name).write_text(text)
        readable(scratch)
        for file in scratch.iterdir():
            sync(file)
        check_free(folder)  # another process may have been faster
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def check_free(folder: Path) -> None:
    """ValueError for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose another one")


def own_config(model: PreTrainedModel, budget: float | None = None) -> Any:
    """The configuration of the model as one of our types, its dial at `budget`. Raises ValueError as `export`."""
    plugin = plugin_of(model)
    offset_for(model, budget)  # refuses a budget that cannot be kept
    config = saving.own_config(model)
    if budget is None:
        budget = config.budget if plugin is None else plugin.recommended
    config.update({"budget": budget, "offset": None if budget is not None else config.offset})
    return config
