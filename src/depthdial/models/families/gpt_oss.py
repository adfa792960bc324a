"""GPT-OSS: experts in every layer, and a learned sink for each head, which takes a share of its attention."""

from depthdial.models.family import Family

GPT_OSS = Family(
    "gpt_oss",
    norms="once",
    tiny={
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "sliding_window": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 32,
            "truncate": False,
        },
    },
)
