"""Gemma 3 (text): norms before and after each half, sliding and global layers with a rope of their own.

The norm after a half is part of the unit. Were it outside, it would rescale a soft weight away and give the adapter's
output the size of an MLP's.
"""

from transformers import Gemma3TextConfig

from depthdial.models.family import Family

GEMMA3 = Family(
    model_type="gemma3_text",
    example=Gemma3TextConfig,
    before_mlp="pre_feedforward_layernorm",
    after_attn="post_attention_layernorm",
    after_mlp="post_feedforward_layernorm",
    head_norms=True,
    plus_one=True,
    scales_embeddings=True,
    rope_per_kind=True,
    activation="hidden_activation",
    sliding=True,
)
