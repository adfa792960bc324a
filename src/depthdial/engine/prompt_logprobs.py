"""Log-probabilities of a prompt's tokens, from the passes that read it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depthdial.engine.sampling import logprobs_of
from depthdial.engine.scheduler import Slice


def read_aloud(slices: Sequence[Slice], logits: Tensor) -> Tensor:
    """Note them in the requests that ask for them; gives the logits that tokens are drawn by. logits: [places, V] of
    all that was asked for in a pass."""
    at, kept = 0, []
    for part in slices:
        request, own = part.row.request, logits[at : at + part.asked]
        at += part.asked
        kept.append(own[len(own) - part.drawn :])
        count = request.params.prompt_logprobs
        if part.aloud and count is not None:
            first = len(request.prompt_logprobs)  # what ran before, and was preempted, keeps its figures
            assert first >= part.start, "no place is left out"
            known = request.token_ids[first + 1 : part.start + part.count + 1]
            rows = zip(own[first - part.start :], known, strict=False)  # what follows the prompt is not known
            request.prompt_logprobs += [logprobs_of(row, token, count) for row, token in rows]
    return torch.cat(kept)
