"""Qwen2 and Qwen2.5: a Llama layer with biases on q, k and v; some layers may slide."""

from transformers import Qwen2Config

from depthdial.models.family import Family

QWEN2 = Family(model_type="qwen2", example=Qwen2Config, sliding=True, qkv_bias=True)
