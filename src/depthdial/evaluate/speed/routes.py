"""Which layers the tokens of a measured run went through, asked of the dense reference and not of the engine.

So an engine that runs more than its method asks for is measured against the work that was needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from depthdial.evaluate.speed.ideal import Tokens
from depthdial.models.convert import route_of


@torch.no_grad()
def keeps(
    model: Any, texts: Sequence[Sequence[int]], offsets: Sequence[Sequence[float]], at_once: int = 16
) -> list[Tensor]:
    """bool [L, T] for each text: the layers that run for its tokens, by the converted model at these offsets, one for
    each token.

    The route's own offset is put back. Texts are padded on the right, which causal attention does not see.
    """
    route, found = route_of(model), []
    before, layers = route.offset, len(route.ledger.layers)
    if all(offset == math.inf for of in offsets for offset in of):  # nothing to ask: everything runs
        return [torch.ones(layers, len(text), dtype=torch.bool) for text in texts]
    try:
        for start in range(0, len(texts), at_once):
            some, dials = texts[start : start + at_once], offsets[start : start + at_once]
            longest = max(map(len, some))
            route.offset = torch.tensor([[*of, *[0.0] * (longest - len(of))] for of in dials], device=model.device)
            ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in some], device=model.device)
            positions = torch.arange(longest, device=model.device).expand(len(some), -1)
            model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1)
            keep = route.keep().cpu()
            found += [keep[:, i, : len(text)] for i, text in enumerate(some)]
    finally:
        route.offset = before
    return found


def prefill_pass(keep: Sequence[Tensor], decided: bool) -> list[Tokens]:
    """One pass over whole prompts, each giving logits for its last token. keep: bool [L, T] for each."""
    positions = torch.cat([torch.arange(k.shape[1]) for k in keep])
    texts = torch.cat([torch.full((k.shape[1],), i) for i, k in enumerate(keep)])
    return [Tokens(torch.cat(list(keep), 1), positions, texts, len(keep), decided)]


def decode_passes(keep: Sequence[Tensor], starts: Sequence[int], steps: int, decided: bool) -> list[Tokens]:
    """`steps` passes of one token from each text; `starts`: the place of each text's first one."""
    texts = torch.arange(len(keep))
    passes = []
    for step in range(steps):
        places = [start + step for start in starts]
        column = torch.stack([k[:, place] for k, place in zip(keep, places, strict=True)], 1)
        passes.append(Tokens(column, torch.tensor(places), texts, len(keep), decided))
    return passes
