"""Programs in the engine: what is left out is left out of memory, what is behind an exit does not run, and pages are
shared only where the same would be written."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.engine.poison import poison

from depthdial.core.dial import Dials
from depthdial.engine.cache import NONE
from depthdial.engine.llm import LLM
from depthdial.engine.native import NativeRunner
from depthdial.engine.request import Request
from depthdial.kernels.tensors import PAGE
from depthdial.methods import FlexiDepth
from depthdial.models.block import spine_of


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(llm: LLM, request: Request, tokens: int) -> None:
    llm.engine.submit(request, llm.tokenizer)
    while request.rows[0].computed < tokens:
        llm.engine.step()


def units(llm: LLM) -> int:
    """Units of the cache that somebody holds."""
    cache = llm.engine.scheduler.cache
    return len(cache.k) - len(cache._free)


@pytest.mark.parametrize(("method", "gone"), [("static", 2), ("exiting", 2), ("balcony", 2), ("flexidepth", 0)])
def test_full_pages_hold_no_unit_of_what_nobody_ran(made: Callable, asked: Callable, method: str, gone: int):
    """Layers that are dropped, and blocks of exits that no token takes."""
    llm: LLM = made(method)
    offset = 0.0 if method == "static" else 1e9
    request = asked(llm, text(100), offset, max_tokens=8)
    read(llm, request, 100)
    assert units(llm) == 2 * llm.layers - gone, "of the page that is still open all are kept"
    llm.engine.cancel(request)


def test_more_fits_where_layers_are_dropped(made: Callable, asked: Callable, finish: Callable):
    """Room for six texts of all six layers holds seven where two layers are dropped."""
    for offset, fits in ((0.0, 7), (math.inf, 6)):
        llm: LLM = made("static", cache_tokens=12 * PAGE, max_batch=8)
        requests = [asked(llm, text(100, i), offset, max_tokens=20) for i in range(8)]
        for request in requests:
            llm.engine.submit(request, llm.tokenizer)
        for _ in range(12):
            llm.engine.step()
        assert sum(request.rows[0].slot is not None for request in requests) == fits
        finish(llm, requests)
        assert llm.engine.scheduler.cache.available == 12


def test_an_answer_is_no_prefix_of_a_prompt(made: Callable, asked: Callable, finish: Callable):
    """d3 decides by the place in the answer: an answer that a prompt repeats was written at other depths."""
    llm: LLM = made("d3", max_batch=2)
    poison(llm.engine.scheduler.cache)
    first = asked(llm, text(60), 0.0, max_tokens=40)
    llm.engine.submit(first, llm.tokenizer)
    (out,) = finish(llm, [first])
    assert min(out.depths) < llm.layers, "the answer's later tokens run fewer layers"
    longer = text(60) + out.token_ids
    asks = [asked(llm, longer, 0.0, max_tokens=8) for _ in range(2)]
    outputs = []
    for request in asks:  # the second from the first one's pages
        llm.engine.submit(request, llm.tokenizer)
        outputs += finish(llm, [request])
    fresh: LLM = made("d3", prefix_cache=False)
    alone = asked(fresh, longer, 0.0, max_tokens=8)
    fresh.engine.submit(alone, fresh.tokenizer)
    (expected,) = finish(fresh, [alone])
    assert asks[0].cached_tokens == 0 and asks[1].cached_tokens == PAGE
    for output in outputs:
        assert output.token_ids == expected.token_ids and output.prompt_depths == expected.prompt_depths
        assert set(output.prompt_depths) == {llm.layers}


@pytest.mark.parametrize("method", ["balcony", "exiting"])
def test_behind_an_exit_nothing_is_read(made: Callable, asked: Callable, finish: Callable, method: str):
    """The first exit is before layer 2: two layers and its own block are run, and no other weight is read."""
    read = {}
    for offset in (-1e9, 1e9):
        llm: LLM = made(method, prompt_budget="same")
        assert isinstance(llm.engine.runner, NativeRunner)
        request = asked(llm, [5], offset, max_tokens=10)
        llm.engine.submit(request, llm.tokenizer)
        finish(llm, [request])
        read[offset] = llm.stats.weight_bytes, llm.stats.layers_run
    (few, layers), (many, _) = read[-1e9], read[1e9]
    assert layers < 10 * 6 and few < 0.8 * many


@pytest.mark.parametrize("method", ["looping", "exiting", "mixture_of_depths", "readout", "d3", "balcony"])
def test_programs_run_natively(made: Callable, asked: Callable, finish: Callable, agrees: Callable, method: str):
    llm: LLM = made(method, max_batch=3)
    assert isinstance(llm.engine.runner, NativeRunner) and llm.stats.in_torch is None
    poison(llm.engine.scheduler.cache)
    dials = [Dials(0.0), Dials(-0.3)]
    requests = [asked(llm, text(30 + 5 * i, i), dial, max_tokens=12) for i, dial in enumerate(dials)]
    for request in requests:
        llm.engine.submit(request, llm.tokenizer)
    for request, output in zip(requests, finish(llm, requests), strict=True):
        agrees(llm, request, output)
    assert llm.stats.native_tokens == llm.stats.tokens
    assert llm.stats.rows_run < llm.stats.tokens * llm.layers, "something was left out"


@pytest.mark.parametrize("torch_alone", [False, True])
@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_pages_behind_a_window_are_given_back(
    tiny_model, tiny_tokenizer, adapted, asked, agrees, family: str, torch_alone: bool
):
    """What was given back is poisoned: nobody reads it."""
    model = adapted(tiny_model(family, max_position_embeddings=512), FlexiDepth(**FlexiDepth.example))
    llm = LLM.of(model, tiny_tokenizer, prompt_budget="same", prefix_cache=False, cache_tokens=512)
    if torch_alone and isinstance(llm.engine.runner, NativeRunner):
        llm.engine.runner = llm.engine.runner.plain
    cache = llm.engine.scheduler.cache
    poison(cache)
    windowed = [v for v, layer in enumerate(spine_of(llm.model).layers) if layer.window]
    others = [v for v in range(cache.shape.layers) if v not in windowed]
    request = asked(llm, list(range(3, 93)), 0.0, max_tokens=120)
    llm.engine.submit(request, llm.tokenizer)
    row = request.rows[0]
    for _ in range(118):
        llm.engine.step()
    assert row.error is None and row.length >= 90 + 115, row.finish_reason
    table = cache.rows[:, row.slot]
    assert (table[windowed, :2] == NONE).all() and (table[windowed, 2:4] >= 0).all(), "two pages of four"
    assert (table[others, :4] >= 0).all()
    assert len(cache._free) == cache.pages * cache.shape.layers - 4 * cache.shape.layers + 2 * len(windowed)
    while not request.done:
        llm.engine.step()
    agrees(llm, request, request.output())
    assert cache.available == cache.pages
