"""Llama (and SmolLM2, TinyLlama, Yi, ...): RMSNorm before each half, grouped keys, rotary positions."""

from transformers import LlamaConfig

from depthdial.models.family import Family

LLAMA = Family(model_type="llama", example=LlamaConfig)
