"""What a method does, tried on a few made-up tokens before the first pass: whether it can decide at all without whole
rows, and at which steps it has a bypass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from depthdial.core.method import Method, Parts, Seen
from depthdial.core.program import Program
from depthdial.core.tokens import Tokens, Trace

COUNT = 8


def some_tokens(device: torch.device) -> Tokens:
    """Made-up tokens at the beginning of a text, half of them read."""
    place = torch.arange(COUNT, device=device)
    prompt = torch.where(place < COUNT // 2, place + 1, COUNT // 2)
    return Tokens(torch.zeros(COUNT, device=device), place, place, prompt)


@torch.no_grad()
def bypassed_steps(
    method: Method, program: Program, parts: Mapping[int, Parts], like: Tensor, vocabulary: int
) -> frozenset[int]:
    """The steps at which who skips them gets something instead. like: T [d], for the size of states, their dtype and
    device. Raises ValueError for a method that compares the tokens of a row."""
    x = torch.randn(COUNT, len(like), generator=torch.Generator().manual_seed(0)).to(like)
    tokens, trace = some_tokens(like.device), Trace(program)
    bypassed = set()
    for s, own in parts.items():
        step, logits = program.steps[s], None
        if "logits" in step.shows:
            logits = nn.functional.pad(x.float(), (0, max(0, (step.head_rows or vocabulary) - len(like))))
        try:
            trace.decisions[s] = method.decide(own, Seen(x, logits), s, tokens, trace)
        except ValueError as error:
            raise ValueError(f"{error}; call model.generate, Hugging Face's own loop") from None
        if method.bypass(own, x, s) is not None:
            bypassed.add(s)
    return frozenset(bypassed)
