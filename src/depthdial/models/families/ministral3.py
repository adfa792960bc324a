"""Ministral 3: a Mistral layer whose queries grow with their place, past the length that the model was trained at."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from depthdial.models.family import Family


def _query_scale(config: Any) -> Callable[[Tensor], Tensor]:
    rope = config.rope_parameters
    beta, trained = rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"]
    return lambda positions: 1 + beta * torch.log1p(torch.floor(positions.float() / trained))


MINISTRAL3 = Family(
    "ministral3",
    query_scale=_query_scale,
    tiny={
        "sliding_window": 12,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8,
            "max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3,
        },
    },
)  # fmt: skip
