"""Two budgets of an `LLM`: the engine gives what `generate` gives by the same ones, and refuses what cannot be had."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.poison import poison
from transformers import GenerationConfig

from depthdial.core.dial import Dials
from depthdial.core.hold import BLOCK
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.methods import METHODS, method_named
from depthdial.models.convert import convert
from depthdial.models.dial import set_budget

MANY = 5 * BLOCK + 3
LONG: dict[str, Any] = {"max_tokens": MANY, "ignore_eos": True}


def text(seed: int, length: int) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def of(tiny_folder: Path, tiny_plugin: Path) -> Callable[..., LLM]:
    """With a curve from 0.7 at -2 over 0.8 at 0 to 0.95 at 2, and 0.8 recommended."""
    return lambda **options: LLM(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu", **options)


def offsets(llm: LLM, prompt: list[int], **params: Any) -> list[tuple[int, int, float]]:
    """Where the dial stands at each place of a text that is generated, in runs of one offset."""
    request = llm.submit(prompt, SamplingParams(**{**LONG, **params}))
    while not request.done:
        llm.engine.step()
    (row,) = request.rows
    return list(row.runs(0, len(row.ran_costs)))


@pytest.mark.parametrize("read", [1.0, 0.9, "same"])
@pytest.mark.parametrize("budget", [0.75, 0.85])
def test_it_is_what_generate_gives(of: Callable, budget: float, read: Any):
    llm, prompt = of(budget=budget, prompt_budget=read), text(0, 20)
    set_budget(llm.model, budget, prompt=read)
    greedy = GenerationConfig(max_new_tokens=MANY, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = llm.model.generate(torch.tensor([prompt]), generation_config=greedy)[0, 20:].tolist()
    (out,) = llm.generate([prompt], SamplingParams(**LONG))
    assert out.token_ids == expected
    assert llm.stats.native_tokens == llm.stats.tokens, "on the fast path"
    (first, *rest) = offsets(llm, prompt)
    assert first == (0, 20, {1.0: math.inf, 0.9: pytest.approx(4 / 3)}.get(read, rest[0][2]))
    assert [end - start for start, end, _ in rest] == [BLOCK] * 5 + [MANY - 1 - 5 * BLOCK]
    assert len({offset for *_, offset in rest}) > 2, "the dial moved"
    assert (out.prompt_cost == 1.0) == (read == 1.0) and min(out.depths[1:]) < llm.layers


def test_a_request_has_budgets_of_its_own(of: Callable):
    llm, prompt = of(), text(1, 20)
    assert (llm.budget, llm.prompt_budget) == (0.8, 1.0)
    assert llm.dials(0.9, "same")[:2] == llm.dials(0.9)._replace(read=None)[:2]
    (out,) = of(budget=0.9, prompt_budget="same").generate([prompt], SamplingParams(**LONG))
    asked = [SamplingParams(**LONG), SamplingParams(budget=0.9, prompt_budget="same", **LONG)]
    usual, own = llm.generate([prompt] * 2, asked)
    assert own == out and usual.token_ids != own.token_ids and usual.prompt_cost == 1.0 > own.prompt_cost


def test_the_two_costs_are_told_apart(of: Callable):
    llm = of(prefix_cache=False)
    out, one = llm.generate([text(2, 20)] * 2, [SamplingParams(30, ignore_eos=True), SamplingParams(1)])
    sample = out.samples[0]
    assert out.prompt_cost == 1.0 and sample.pieces[0].cost == 1.0, "the prompt's last token gave it"
    assert out.cost == sample.cost == pytest.approx(sum(piece.cost for piece in sample.pieces[1:]) / 29)
    assert out.cost < 1.0 and one.cost == 1.0
    stats = llm.stats
    assert (stats.read_tokens, stats.written_tokens) == (40, 29) and stats.read_cost == 40.0
    assert stats.written_cost == pytest.approx(29 * out.cost)


def test_the_base_costs_one_and_is_not_held(of: Callable):
    llm = of()
    assert llm.dials(1.0) == Dials(math.inf, math.inf)
    base, lossless = (SamplingParams(**LONG, budget=1.0), SamplingParams(**LONG, lossless=True))
    first, second = llm.generate([text(3, 20)] * 2, [base, lossless])
    assert first.token_ids == second.token_ids and first.cost == 1.0


@pytest.mark.parametrize("read", [1.0, "same"])
def test_a_text_is_the_same_cached_or_not_alone_or_not_and_after_it_gave_way(of: Callable, read: Any):
    """Pages that nobody may read hold nan."""
    options: dict[str, Any] = {"prompt_budget": read, "max_batch": 4}
    prompts, params = [text(seed, 66 - 4 * seed) for seed in range(4)], SamplingParams(48, ignore_eos=True)
    params = [params if i % 2 else SamplingParams(48, ignore_eos=True, budget=0.9) for i in range(4)]
    alone = [of(prefix_cache=False, **options).generate([p], each)[0] for p, each in zip(prompts, params, strict=True)]
    assert len({offset for *_, offset in offsets(of(**options), prompts[1], max_tokens=48)}) > 2, "the dial moves"
    for tokens in (4096, 256):
        llm = of(cache_tokens=tokens, **options)
        poison(llm.engine.scheduler.cache)
        for _ in range(2):
            assert llm.generate(prompts, params) == alone
        assert llm.stats.cached_tokens > 0 or tokens == 256
        assert (llm.stats.preemptions > 0) == (tokens == 256)
        assert llm.stats.native_tokens == llm.stats.tokens


def test_samples_of_a_prompt_are_held_each_by_its_own(of: Callable):
    params: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "temperature": 1.0, "seed": 3}
    llm = of(max_batch=4)
    request = llm.submit(text(5, 30), SamplingParams(n=3, **params))
    while not request.done:
        llm.engine.step()
    turns = {tuple(offset for *_, offset in row.runs(30, 80)) for row in request.rows}
    assert len(turns) == 3, "they cost what they cost"
    (one,) = of().generate([text(5, 30)], SamplingParams(**params))
    assert one.samples[0].token_ids == request.rows[0].token_ids


def test_what_was_written_is_read_again_in_full(of: Callable):
    """The next turn of a conversation: the first prompt's pages serve again, an answer's do not."""
    llm, first = of(cache_tokens=4096), text(7, 64)
    (out,) = llm.generate([first], SamplingParams(33, ignore_eos=True))
    second = first + out.token_ids + text(8, 5)
    (again,) = llm.generate([second], SamplingParams(12, ignore_eos=True))
    assert llm.stats.cached_tokens == 64
    (fresh,) = of().generate([second], SamplingParams(12, ignore_eos=True))
    assert again == fresh and again.prompt_cost == 1.0


def test_pages_of_answers_serve_nobody_else(of: Callable):
    """Neither who asks for the same at another budget, nor a prompt that is those very tokens."""
    llm, prompt = of(cache_tokens=4096), text(9, 40)
    (out,) = llm.generate([prompt], SamplingParams(60, ignore_eos=True))
    every: list[dict[str, Any]] = [{}, {"budget": 0.9}, {"budget": 1.0}, {"prompt_budget": "same"}, {"lossless": True}]
    for asked in every:
        before = llm.stats.cached_tokens
        llm.generate([prompt + out.token_ids], SamplingParams(4, **asked))
        (fresh,) = of().generate([prompt + out.token_ids], SamplingParams(4, **asked))
        (again,) = llm.generate([prompt + out.token_ids], SamplingParams(4, **asked))
        assert again.token_ids == fresh.token_ids
        shared = llm.stats.cached_tokens - before
        assert shared == (64 if asked in ({}, {"prompt_budget": "same"}) else 128), "read once by all that read in full"


@pytest.mark.parametrize("wrong", [0.0, 1.2, -1, True, "full", math.nan])
def test_a_prompt_budget_that_is_none_is_refused_before_anything_is_loaded(wrong: Any):
    for ask in (
        lambda: LLM("no/such/model", prompt_budget=wrong),
        lambda: SamplingParams(prompt_budget=wrong),
    ):
        with pytest.raises(ValueError, match="prompt_budget must be above 0 and at most 1") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_prompt_budget_outside_the_curve_is_refused(of: Callable):
    for ask in (lambda: of(prompt_budget=0.5), lambda: of().generate("a", SamplingParams(prompt_budget=0.5))):
        with pytest.raises(ValueError, match=r"0\.5 .*0\.700 to 1\.0"):
            ask()
    with pytest.raises(ValueError, match="lossless text is the untouched base's"):
        SamplingParams(lossless=True, prompt_budget=0.8)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if not kind.frozen])
def test_a_model_with_its_own_routers_reads_as_it_writes(tiny_model: Callable, tiny_tokenizer: Any, method: str):
    model: Any = convert(tiny_model(), method_named(method, dict(METHODS[method].example)))
    llm = LLM.of(model, tiny_tokenizer)
    if not model.converted.program.skips:
        assert llm.prompt_budget == 1.0
        return
    assert llm.prompt_budget == "same" and llm.dials().alike
    asks = (
        lambda: LLM.of(model, tiny_tokenizer, prompt_budget=1.0),
        lambda: llm.generate("a", SamplingParams(prompt_budget=1.0)),
    )
    for ask in asks:
        with pytest.raises(ValueError, match="no untouched base") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_budget_that_moves_by_itself_is_not_held(of: Callable):
    assert of().dials().hold is not None
    llm = of(budget="auto")
    assert llm.dials().hold is None and llm.dials().read == math.inf
    llm = of(budget="auto", budget_bounds=(0.75, 0.95), max_batch=2)
    assert llm.dials(0.8).hold is not None, "a budget of its own is"
    requests = [llm.submit(text(i, 10), SamplingParams(8, ignore_eos=True)) for i in range(6)]
    while not all(request.done for request in requests):
        llm.engine.step()
    outputs = [request.output() for request in requests]
    assert {out.prompt_cost for out in outputs} == {1.0} and min(out.cost for out in outputs) < 1.0


def test_whole_layers_are_dropped_from_what_is_written_only(made: Callable, asked: Callable, finish: Callable):
    """Static layers leave no K and V: a prompt read in full leaves more than is asked for."""
    llm = made("static")
    poison(llm.engine.scheduler.cache)
    request = asked(llm, text(0, 70), Dials(0.0, math.inf))
    llm.engine.submit(request, llm.tokenizer)
    (out,) = finish(llm, [request])
    count = len(llm.model.converted.method.order[: llm.model.converted.method.count])
    assert set(out.prompt_depths) == {llm.layers} and set(out.depths[1:]) == {llm.layers - count} and count
    assert sorted(llm.stats.kv_rows.tolist()) == [70] * count + [81] * (llm.layers - count)
