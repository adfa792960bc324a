"""What a request changes in the logits before a token is drawn: bias, penalties, least length, least probability.

Applied in this order, as other servers do: `min_tokens`, `logit_bias`, repetition, frequency and presence, then `min_p`
after the temperature; `top_k` and `top_p` come later (`sampling`). All depends on the text before the token alone, so a
draft that is verified meets what it would have met without drafts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from depthdial.engine.sampling import SamplingParams


def adjusted(
    logits: Tensor, params: SamplingParams, prompt: Sequence[int], written: Sequence[int], ends: Collection[int]
) -> Tensor:
    """The logits that the next token is drawn by, fp32 [vocabulary].

    logits: [vocabulary], left as they are. prompt, written: the tokens before; repetition counts both, frequency and
    presence what is written. ends: the tokens that end a text.
    """
    scores = logits.to(torch.float32, copy=True)
    if ends and len(written) < params.min_tokens:
        scores[_ids(scores, ends)] = -math.inf
    if params.logit_bias:
        ids = _ids(scores, params.logit_bias)
        scores[ids] += torch.tensor(list(params.logit_bias.values()), device=scores.device)
    if params.repetition_penalty != 1:
        ids = _ids(scores, {*prompt, *written})
        scores[ids] = torch.where(
            scores[ids] > 0, scores[ids] / params.repetition_penalty, scores[ids] * params.repetition_penalty
        )
    if written and (params.frequency_penalty or params.presence_penalty):
        ids, counts = _ids(scores, written).unique(return_counts=True)
        scores[ids] -= params.frequency_penalty * counts + params.presence_penalty
    if params.min_p and params.temperature:
        scores[scores < scores.max() + params.temperature * math.log(params.min_p)] = -math.inf
    return scores


def check_bias(params: SamplingParams, vocabulary: int) -> None:
    """ValueError, one line, for a bias of a token that the model does not have."""
    if bad := [token for token in params.logit_bias or () if token >= vocabulary]:
        raise ValueError(f"logit_bias has token {bad[0]}; tokens are whole numbers from 0 to {vocabulary - 1}")


def _ids(scores: Tensor, tokens: Collection[int]) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=scores.device)
