"""The plain loop: one pass per token with Hugging Face's model and cache. The meaning of every faster engine.

It computes what is skipped (the dense reference does), so it is right and never fast. Positions are always given:
prompts are padded on the left, and a finished row leaves the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from depthdial.engine.request import Request, Row
from depthdial.engine.sampling import choose


class Pass(NamedTuple):
    """What one forward pass of the model gave. B rows, T tokens each."""

    logits: Tensor
    """[B, vocabulary], of the last token."""
    depths: list[list[int]]
    """Layers run for each token, B lists of T."""
    costs: list[list[float]]
    """True cost of each token relative to dense, B lists of T."""


@torch.no_grad()
def decode(model: Any, rows: Sequence[Row], ends: frozenset[int]) -> Iterator[list[Row]]:
    """Generate for one batch until every row has ended; after each pass, yield the rows that got a token.

    model: converted, with its `route`; ends: the tokens that end a text. The rows of one request share its prompt's
    pass. Fills `Request.depths` and `Request.costs`.
    """
    device = model.device
    cache = DynamicCache(config=model.config)
    requests = list({id(row.request): row.request for row in rows}.values())
    first, mask = _read_prompts(model, cache, requests)
    place = {id(request): i for i, request in enumerate(requests)}
    source = [place[id(row.request)] for row in rows]  # which row of the prompts' pass each sample continues
    active = list(rows)
    _push(active, first, source, ends)
    yield active
    while True:
        stay = [i for i, row in enumerate(active) if row.finish_reason is None]
        active = [active[i] for i in stay]
        if not active:
            return
        if (source := [source[i] for i in stay]) != list(range(len(mask))):
            pick = torch.tensor(source, device=device)
            cache.batch_select_indices(pick)
            mask = mask[pick]
        source = list(range(len(active)))
        ids = torch.tensor([[row.token_ids[-1]] for row in active], device=device)
        positions = torch.tensor([[row.length - 1] for row in active], device=device)
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
        offsets = [row.request.offset for row in active]
        _push(active, _forward(model, cache, ids, mask, positions, offsets), source, ends)
        yield active


def _read_prompts(model: Any, cache: DynamicCache, requests: Sequence[Request]) -> tuple[Pass, Tensor]:
    """The first pass, over left-padded prompts, and its mask int64 [B, T]: 1 at real tokens."""
    longest = max(len(request.token_ids) for request in requests)
    pads = [longest - len(request.token_ids) for request in requests]
    ids = torch.tensor([[0] * pad + r.token_ids for pad, r in zip(pads, requests, strict=True)], device=model.device)
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = _forward(model, cache, ids, mask, positions, [request.offset for request in requests])
    for request, pad, depths, costs in zip(requests, pads, out.depths, out.costs, strict=True):
        request.depths, request.costs = depths[pad:], costs[pad:]
    return out, mask


def _forward(
    model: Any, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor, offsets: Sequence[float]
) -> Pass:
    """One pass over ids [B, T], mask [B, cached + T]. The route's own offset is put back, whoever uses it between."""
    route, before = model.route, model.route.offset
    # one number where all rows agree: the untouched base then makes no decision at all
    route.offset = offsets[0] if len(set(offsets)) == 1 else torch.tensor(offsets, device=ids.device)
    try:
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return Pass(out.logits[:, -1], route.layers_used.tolist(), route.token_cost().tolist())
    finally:
        route.offset = before


def _push(rows: Sequence[Row], out: Pass, source: Sequence[int], ends: frozenset[int]) -> None:
    """Draw the next token of each row from row `source[i]` of the pass."""
    logits = out.logits[source]
    tokens = choose(logits, [row.request.params for row in rows], [row.key for row in rows]).tolist()
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if row.request.params.logprobs is not None:
            row.logprobs.append(_logprobs(logits[i], token, row.request.params.logprobs))
        row.push(token, out.depths[source[i]][-1], out.costs[source[i]][-1], ends)


def _logprobs(logits: Tensor, token: int, count: int) -> dict[int, float]:
    """Log-probabilities of the chosen token and of the `count` likeliest, likeliest first."""
    logprob = logits.float().log_softmax(-1)
    ids = logprob.topk(min(count, logprob.numel())).indices.tolist()
    return {i: float(logprob[i]) for i in [*ids, *([token] if token not in ids else [])]}
