"""Gemma 1 to 3 (text): norms by 1 + weight, scaled embeddings; from 2 on a norm after attention and MLP, too, and
capped scores and logits; in 3 norms on q and k, and a rope for each kind of layer."""

from depthdial.models.family import Family

GEMMA = Family("gemma", norms="plus_one")
GEMMA2 = Family(
    "gemma2",
    norms="plus_one",
    tiny={
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 4.0,
    },
)
GEMMA3 = Family("gemma3_text", norms="plus_one", tiny={"sliding_window": 8, "query_pre_attn_scalar": 8})
