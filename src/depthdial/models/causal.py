"""What can be converted at all: a whole causal language model, its layers its own."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.generation.utils import GenerationMixin


def check_causal(model: object) -> None:
    """Raise ValueError, with the remedy, for what is no causal language model or has been changed by peft."""
    kind = type(model)
    if kind.__module__.partition(".")[0] == "peft":
        raise ValueError(
            f"this is a base inside of peft's {kind.__name__}: merge the adapter first (model.merge_and_unload()), or "
            "convert the base alone and put peft around that"
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"this is a {kind.__name__}, not a Hugging Face model; use load(...) for a name or a folder")
    if not isinstance(model, GenerationMixin) or model.get_output_embeddings() is None:
        raise ValueError(
            f"this is a {kind.__name__}, and causal language models alone can be converted; "
            "load it with AutoModelForCausalLM"
        )
    for name, module in model.named_modules():
        if type(module).__module__.startswith("peft.tuners"):
            raise ValueError(
                f"{name} is a layer of peft's ({type(module).__name__}): merge the adapter into the base before it is "
                "converted, or train it on the converted model"
            )
