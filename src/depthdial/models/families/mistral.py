"""Mistral: a Llama layer whose attention may slide over a window in every layer."""

from transformers import MistralConfig

from depthdial.models.family import Family

MISTRAL = Family(model_type="mistral", example=MistralConfig, sliding=True)
