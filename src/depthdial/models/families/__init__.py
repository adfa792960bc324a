"""The families of models that can be converted. FAMILIES is the only list of them."""

from transformers import PretrainedConfig

from depthdial.models.families.gemma3 import GEMMA3
from depthdial.models.families.llama import LLAMA
from depthdial.models.families.mistral import MISTRAL
from depthdial.models.families.qwen2 import QWEN2
from depthdial.models.families.qwen3 import QWEN3
from depthdial.models.family import Family

FAMILIES: dict[str, Family] = {f.model_type: f for f in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3)}


OWN = "depthdial_"
"""Our own model types are a family's with this before it: the same layers, converted (`models.scratch`)."""


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model's configuration. Raises ValueError for a family that is not known."""
    if (kind := config.model_type.removeprefix(OWN)) not in FAMILIES:
        raise ValueError(
            f"models of type {config.model_type!r} cannot be converted yet; known: {', '.join(FAMILIES)} "
            "(CONTRIBUTING.md says how to add a family)"
        )
    return FAMILIES[kind]
