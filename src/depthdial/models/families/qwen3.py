"""Qwen3: a Llama layer with norms on q and k inside attention, and a head size of its own; some layers may slide."""

from transformers import Qwen3Config

from depthdial.models.family import Family

QWEN3 = Family(model_type="qwen3", example=Qwen3Config, head_norms=True, sliding=True)
