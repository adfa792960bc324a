"""Run masks and logits of whole texts against one pass of `Routed` over each, for every method that the engine runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from depthdial.engine.reading import Reader
from depthdial.methods import METHODS, method_named

RECTANGULAR = [name for name in METHODS if method_named(name, {}).kv in ("project", "none")]
TEXTS = [[5], list(range(1, 40)), [7, 8], [9] * 70, list(range(30, 20, -1))]


def by_routed(llm, text: list[int], offset: float) -> tuple[np.ndarray, torch.Tensor]:
    model = llm.model
    model.route.offset = offset
    with torch.no_grad():
        logits = model(torch.tensor([text]), use_cache=False).logits[0].float()
    return model.route.keep()[:, 0].T.numpy(), logits


def check(llm, texts: list[list[int]], offset: float, room: int, looking: bool = True) -> None:
    seen: dict[int, list[tuple[int, torch.Tensor]]] = {}
    reader, tokens, passes = Reader(llm.engine, llm.tokenizer, room), llm.stats.tokens, llm.stats.passes
    look = (lambda i, start, logits: seen.setdefault(i, []).append((start, logits.clone()))) if looking else None
    found = reader.read(texts, offset, look)
    total = sum(map(len, texts))
    assert llm.stats.tokens - tokens == total, "every token runs once"
    assert llm.stats.passes - passes <= -(-total // room) + len(texts), "texts share passes"
    for i, (text, ran) in enumerate(zip(texts, found, strict=True)):
        wanted, logits = by_routed(llm, text, offset)
        assert np.array_equal(ran, wanted)
        if looking:
            parts = seen[i]
            assert [start for start, _ in parts] == list(np.cumsum([0, *(len(p) for _, p in parts)])[:-1])
            assert torch.allclose(torch.cat([p for _, p in parts]), logits, atol=2e-4)
    assert bool(seen) == looking
    assert llm.engine.scheduler.cache.free_slots == llm.max_batch, "every slot is given back"


@pytest.mark.parametrize("method", RECTANGULAR)
@pytest.mark.parametrize("offset", [0.0, 0.7, math.inf])
def test_what_is_read_is_what_the_reference_reads(made, method, offset):
    check(made(method), TEXTS, offset, 64)


@pytest.mark.parametrize("room", [1, 3, 17, 2048])
def test_passes_of_any_size_give_the_same(made, room):
    check(made(), TEXTS, 0.0, room)


def test_nobody_needs_to_look(made):
    check(made(), TEXTS, 0.0, 512, looking=False)


def test_few_slots_and_pages_are_enough(made):
    check(made(max_batch=1, cache_tokens=128), TEXTS, 0.0, 512)


def test_what_cannot_fit_is_refused_and_leaves_nothing_behind(made):
    llm = made(max_batch=2, cache_tokens=64)
    with pytest.raises(ValueError, match="raise cache_tokens"):
        Reader(llm.engine, llm.tokenizer, 512).read([[1, 2], [3] * 70], 0.0)
    assert llm.engine.scheduler.cache.free_slots == 2
