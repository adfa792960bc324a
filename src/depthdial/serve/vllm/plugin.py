"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`): make our model types known to it."""

# pyright: reportMissingImports=false

from __future__ import annotations

from depthdial.models.own import own_types
from depthdial.serve.vllm.shape import KINDS

MODEL = "depthdial.serve.vllm.model:RoutedForCausalLM"


def register() -> None:
    """Register one vLLM model for all our types, by name only: nothing of it is imported here. May be called again."""
    from vllm import ModelRegistry

    for kind in KINDS:
        ModelRegistry.register_model(own_types(kind).model.__name__, MODEL)
