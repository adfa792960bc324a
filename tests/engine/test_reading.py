"""Run masks and logits of whole texts against one pass of `Routed` over each, for every method that the engine runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.engine.test_score import offsets_of
from tests.laws.toys import TOYS

from depthdial.core.dial import Dials
from depthdial.core.hold import BLOCK, Hold
from depthdial.engine.llm import LLM
from depthdial.engine.reading import Reader
from depthdial.methods import METHODS, method_named

TEXTS = [[5], list(range(1, 40)), [7, 8], [9] * 70, list(range(30, 20, -1))]


def by_routed(llm, text: list[int], offset: float) -> tuple[np.ndarray, torch.Tensor]:
    model = llm.model
    with torch.no_grad(), model.converted.using(offset=offset, read=torch.ones(1, len(text), dtype=torch.bool)):
        logits = model(torch.tensor([text]), use_cache=False).logits[0].float()
    return model.route.keep()[:, 0].T.numpy(), logits


def passes_of(lengths: list[int], room: int) -> int:
    """A text begins in the pass before it if it fits there as a whole."""
    count = left = 0
    for length in lengths:
        if length > left:
            count, left = count + 1, room
        while length > left:
            count, length, left = count + 1, length - left, room
        left -= length
    return count


def check(llm, texts: list[list[int]], offset: float, room: int, looking: bool = True, tight: bool = False) -> None:
    seen: dict[int, list[tuple[int, torch.Tensor]]] = {}
    reader, tokens, passes = Reader(llm.engine, llm.tokenizer, room), llm.stats.tokens, llm.stats.passes
    look = (lambda i, start, logits: seen.setdefault(i, []).append((start, logits.clone()))) if looking else None
    found = reader.read(texts, Dials(offset), look)
    total = sum(map(len, texts))
    assert llm.stats.tokens - tokens == total, "every token runs once"
    if not tight:
        assert llm.stats.passes - passes == passes_of([len(text) for text in texts], room), "texts share passes"
    for i, (text, (ran, costs)) in enumerate(zip(texts, found, strict=True)):
        wanted, logits = by_routed(llm, text, offset)
        assert np.array_equal(ran, wanted)
        assert np.allclose(costs, llm.model.route.token_cost()[0])
        if looking:
            parts = seen[i]
            assert [start for start, _ in parts] == list(np.cumsum([0, *(len(p) for _, p in parts)])[:-1])
            assert torch.allclose(torch.cat([p for _, p in parts]), logits, atol=2e-4)
    assert bool(seen) == looking
    assert llm.engine.scheduler.cache.free_slots == llm.max_batch, "every slot is given back"


@pytest.mark.parametrize("method", [*METHODS, *TOYS])
@pytest.mark.parametrize("offset", [0.0, 0.7, math.inf])
def test_what_is_read_is_what_the_reference_reads(made, method, offset):
    check(made(method), TEXTS, offset, 64)


@pytest.mark.parametrize("room", [7, 64, 512])
@pytest.mark.parametrize("hold", [None, Hold(0.75, 0.0, 0.1)])
def test_what_follows_a_prompt_is_written(made, hold, room):
    """Texts that are held go on block by block, all of them together."""
    llm, dials = made(max_batch=3), Dials(0.0, math.inf, hold)
    texts, prompts = [list(range(3 + 7 * i, 80 + 9 * i)) for i in range(5)], [1, 30, 64, 77 + 6, 10]
    seen: dict[int, list[torch.Tensor]] = {}
    reader, tokens, passes = Reader(llm.engine, llm.tokenizer, room), llm.stats.tokens, llm.stats.passes
    look = lambda i, _, logits: seen.setdefault(i, []).append(logits.clone())  # noqa: E731
    found = reader.read(texts, dials, look, prompts)
    assert llm.stats.tokens - tokens == sum(map(len, texts))
    assert hold is None or room < 512 or llm.stats.passes - passes < sum(len(text) // BLOCK for text in texts) / 1.5
    moved = set()
    for i, (text, (ran, costs), prompt) in enumerate(zip(texts, found, prompts, strict=True)):
        offsets = offsets_of(llm.model, text, prompt, dials)
        moved |= set(offsets[prompt:])
        llm.model.converted.set(offset=torch.tensor([offsets]))
        with torch.no_grad():
            logits = llm.model(torch.tensor([text]), use_cache=False).logits[0].float()
        assert np.array_equal(ran, llm.model.route.keep()[:, 0].T.numpy())
        assert np.allclose(costs, llm.model.route.token_cost()[0])
        assert torch.allclose(torch.cat(seen[i]), logits, atol=2e-4)
        assert ran[:prompt].all() and (len(text) == prompt or not ran[prompt:].all())
    assert (len(moved) > 4) == (hold is not None)
    assert llm.engine.scheduler.cache.free_slots == llm.max_batch


@pytest.mark.parametrize("room", [1, 3, 17, 2048])
def test_passes_of_any_size_give_the_same(made, room):
    check(made(), TEXTS, 0.0, room)


def test_nobody_needs_to_look(made):
    check(made(), TEXTS, 0.0, 512, looking=False)


def test_few_slots_and_pages_are_enough(made):
    check(made(max_batch=1, cache_tokens=128), TEXTS, 0.0, 512, tight=True)


@pytest.mark.parametrize("text", [[3] * 70, []], ids=["long", "empty"])
def test_what_cannot_fit_is_refused_and_leaves_nothing_behind(made, text):
    llm = made(max_batch=2, cache_tokens=64)
    reader = Reader(llm.engine, llm.tokenizer, 512)
    with pytest.raises(ValueError, match="raise cache_tokens"):
        reader.read([[1, 2], text], Dials(0.0))
    cache = llm.engine.scheduler.cache
    assert cache.free_slots == 2 and cache.available == cache.pages
    assert reader.fits(64) and not reader.fits(len(text))
    roomy = made(cache_tokens=100_000)
    assert not Reader(roomy.engine, roomy.tokenizer, 512).fits(roomy.context + 64), (
        "the table's rows are a context long"
    )


def test_the_batch_is_where_the_cache_is(made):
    llm = made()
    llm.engine.scheduler.cache.k = llm.engine.scheduler.cache.k.to("meta")
    assert Reader(llm.engine, llm.tokenizer, 64)._known._batch._device.type == "meta"


@pytest.mark.parametrize("room", [32, 128])
def test_bf16_is_near_the_reference_and_one_pass_does_not_overwrite_another(tiny_model, tiny_tokenizer, adapted, room):
    """Sizes are whole tiles: where there is AMX, these are native passes whose logits share their memory."""
    base = tiny_model("llama", hidden_size=64, intermediate_size=128, head_dim=32).bfloat16()
    llm = LLM.of(adapted(base, method_named("static", dict(METHODS["static"].example))), tiny_tokenizer)
    seen: dict[int, list[torch.Tensor]] = {}
    texts = [list(range(3, 60)), [9] * 40, list(range(200, 100, -1))]
    reader = Reader(llm.engine, llm.tokenizer, room)
    unseen = reader.read(texts, Dials(0.0))  # no pass is asked for logits
    found = reader.read(texts, Dials(0.0), lambda i, _, logits: seen.setdefault(i, []).append(logits.float().clone()))
    for i, text in enumerate(texts):
        wanted, logits = by_routed(llm, text, 0.0)
        assert np.array_equal(found[i].ran, wanted) and np.array_equal(unseen[i].ran, wanted)
        here = torch.cat(seen[i])
        assert (here - logits).norm() < 0.05 * logits.norm()
