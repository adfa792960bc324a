"""Families that say all of themselves by the names of their modules and the fields of their configurations.

Llama (and SmolLM2, TinyLlama, Yi, ...) and Mistral, whose attention may slide over a window; Qwen2 and Qwen2.5 with
biases on q, k and v; Qwen3 with norms on q and k, head by head, and its mixture of experts; Granite with multipliers
of embedding, updates, scores and logits; Arcee, whose MLP has no gate; Seed-OSS; Phi-3 with linear maps that are
fused and a rope that may turn a part of each head; Mixtral and OLMoE, which are mixtures.
"""

from depthdial.models.family import Family

SLIDING = {"sliding_window": 8}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.2,
    "logits_scaling": 1.3,
}
PLAIN = (
    Family("llama"),
    Family("mistral", tiny=SLIDING),
    Family("ministral", tiny=SLIDING),
    Family("qwen2"),
    Family("qwen3"),
    Family("granite", tiny=GRANITE),
    Family("arcee"),
    Family("cwm", tiny=SLIDING),
    Family("iquestcoder", tiny={"attention_bias": True}),
    Family("internlm3", tiny={"attention_bias": True, "mlp_bias": True}),
    Family("seed_oss", tiny={"attention_bias": True, "attention_out_bias": False}),
    Family(
        "phi3",
        tiny={
            **SLIDING,
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4},
        },
    ),
    Family(
        "qwen3_moe",
        tiny={
            **EXPERTS,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
    ),
    Family("mixtral", tiny={**SLIDING, "num_local_experts": 6, "num_experts_per_tok": 2}),
    Family("olmoe", tiny=EXPERTS),
)
