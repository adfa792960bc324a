"""The only place that opens a Hugging Face model: load it, convert it, save and load plug-ins, turn the dial."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthdial.core.dial import PromptBudget
from depthdial.core.vml import settle
from depthdial.methods import Dense
from depthdial.models.base import load_base
from depthdial.models.checkpoint import METHOD_FILE, attach, read, save
from depthdial.models.convert import convert
from depthdial.models.dial import set_budget
from depthdial.models.extra import OWN_BLOCKS
from depthdial.models.families import OWN
from depthdial.models.hub import plugin_folder
from depthdial.models.own import is_own
from depthdial.models.shipped import none_shipped, shipped_ahead, shipped_for

settle()  # here, since all that runs a model comes by here first, in vLLM's processes, too

__all__ = ["attach", "convert", "load", "load_base", "save"]


def load(
    model: str,
    plugin: str | None = "default",
    budget: float | None = None,
    dtype: str | torch.dtype = "bfloat16",
    device: str = "auto",
    allow_other_weights: bool = False,
    prompt_budget: PromptBudget | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An adaptive-depth causal LM and its tokenizer.

    model: a short name, a local folder, a GGUF file or a hub id. plugin: a folder, a hub id (OWNER/NAME[@REVISION]),
    "default" (the one shipped for this base; at budget 1.0 none is needed) or None (the base alone, its route still
    recorded); a model of one of our types takes none but one that was trained for it. dtype: of weights, parts and
    activations.

    budget: true cost of what is written, relative to dense, None for the plug-in's recommended one; `generate` holds it
    for each text. prompt_budget: of what is read: 1.0 (the untouched base), a lower number, or "same" as what is
    written (the form of the papers); None is 1.0, or "same" where routers were trained with the base.

    The model is a plain Hugging Face causal LM: call it with labels, `generate`, and read `model.route.cost()` and
    `model.route.layers_used` [B, T] after a forward pass. `generate` reads the prompt and writes the rest; a call of
    `forward` scores its tokens as written ones, at the offset that costs `budget` on the mean over held-out text, but
    those that `model.converted.set(read=...)`, bool [B, T], says are read (None: none).
    Raises ValueError, with the remedy, for everything that can be wrong with the arguments.
    """
    if not shipped_ahead(model) and plugin == "default":
        if budget != 1.0:
            raise none_shipped(model)
        plugin = None  # the base alone is all that is asked for
    if plugin not in (None, "default"):
        plugin = str(plugin_folder(plugin))
    base, tokenizer = load_base(model, dtype, device)
    if is_own(base):
        if plugin not in (None, "default"):
            if not Path(plugin, METHOD_FILE).is_file() or not read(plugin).base.model_type.startswith(OWN):
                raise ValueError(f"{model} has its own routers and takes no plug-in: leave --plugin out")
            attach(base, plugin, allow_other_weights)
    elif plugin is None:
        convert(base, Dense())
    else:
        attach(base, shipped_for(base.config, model) if plugin == "default" else plugin, allow_other_weights)
    for name, tensor in base.named_parameters():
        if ".parts." in name or f".{OWN_BLOCKS}." in name:
            tensor.data = tensor.data.to(base.dtype)
    set_budget(base, budget, prompt=prompt_budget)
    return base.eval(), tokenizer
