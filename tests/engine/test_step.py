"""The engine against the dense reference: every method and family, alone and in company, and whatever goes wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.poison import poison
from tests.laws.cover import product
from tests.laws.toys import TOYS

from depthdial.core.dial import Dials
from depthdial.engine.device import DeviceLost, alive
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.native import NativeRunner
from depthdial.engine.reading import Reader
from depthdial.engine.score import Scorer, Text
from depthdial.engine.trial import break_even
from depthdial.methods import METHODS, method_named


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 300) for _ in range(length)] for length in lengths]


@product([*METHODS, *TOYS])
def test_every_method_and_family_equals_the_reference(made, asked, finish, agrees, method: str, family: str):
    compare(made(method, family, max_batch=3), asked, finish, agrees, [0.0, -1.0, math.inf, 0.8])


@pytest.mark.parametrize(
    "fields", [{"units": ("attn", "mlp")}, {"units": ("mlp",), "first": 1}, {"units": ("attn",)}], ids=str
)
def test_halves_that_are_decided_apart(made, asked, finish, agrees, fields: dict):
    compare(made("skiplayer", "llama", fields, max_batch=3), asked, finish, agrees, [0.0, -0.3, math.inf, 0.3])


def compare(llm: LLM, asked: Callable, finish: Callable, agrees: Callable, offsets: list[float]) -> None:
    """Prompts of several lengths, each at its own offset, read in pieces beside rows that decode."""
    program = llm.model.converted.program
    llm.engine.scheduler.chunk = 9
    offsets = offsets if program.routed else [math.inf] * 4
    requests = [asked(llm, ids, o, max_tokens=10) for ids, o in zip(prompts(20, 1, 13, 37), offsets, strict=True)]
    for request in requests:
        llm.engine.submit(request, llm.tokenizer)
    outputs = finish(llm, requests)
    for request, output in zip(requests, outputs, strict=True):
        agrees(llm, request, output)
    if program.skips:
        depths = [depth for output in outputs for depth in output.prompt_depths + output.depths]
        costs = [piece.cost for output in outputs for sample in output.samples for piece in sample.pieces]
        assert len(set(costs)) > 1, "tokens differ in cost"
        in_part = program.least == llm.layers  # where one half always runs, so does every layer
        assert (len(set(depths)) == 1) == in_part


@pytest.fixture(scope="module")
def llm(made) -> LLM:
    return made(cache_tokens=64 * 12, max_batch=4)


def clean(llm: LLM) -> None:
    """Nothing is held: every page is free, or rests as a saved prefix."""
    cache = llm.engine.scheduler.cache
    assert llm.engine.scheduler.idle
    assert cache.available == cache.pages and cache.free_slots == llm.max_batch


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_requests_come_and_go_at_any_time(llm: LLM, asked: Callable, finish: Callable, agrees: Callable, data: Any):
    """Prompts join while others decode, some are cancelled in mid-stream, in a cache too small for all."""
    scheduler = llm.engine.scheduler
    scheduler.chunk = data.draw(st.sampled_from([5, 64, 512]), "chunk")
    kept, cancelled = [], []
    for i in range(data.draw(st.integers(2, 7), "requests")):
        length = data.draw(st.sampled_from([1, 3, 63, 64, 65, 100]), "length")
        offset = data.draw(st.sampled_from([0.0, -0.7, math.inf]), "offset")
        request = asked(llm, prompts(length, seed=data.draw(st.integers(0, 2)))[0], offset, max_tokens=8 + i)
        llm.engine.submit(request, llm.tokenizer)
        for _ in range(data.draw(st.integers(0, 4), "steps")):
            llm.engine.step()
        if data.draw(st.booleans(), "cancel"):
            llm.cancel(request)
            cancelled.append(request)
        else:
            kept.append(request)
    for request, output in zip(kept, finish(llm, kept), strict=True):
        agrees(llm, request, output)
    for request in cancelled:
        output = request.output()
        assert output.finish_reason in ("cancelled", "length")
        if output.token_ids:
            agrees(llm, request, output)
    clean(llm)


def test_pages_run_out_and_rows_are_computed_again(made, asked, finish, agrees):
    llm = made(cache_tokens=64 * 4, max_batch=4, prefix_cache=False)
    requests = [asked(llm, ids, max_tokens=50) for ids in prompts(60, 61, 62, 50)]
    for request in requests:
        llm.engine.submit(request, llm.tokenizer)
    for request, output in zip(requests, finish(llm, requests), strict=True):
        agrees(llm, request, output)
        assert len(output.token_ids) == 50
    assert llm.stats.preemptions > 0, "four rows of two pages each do not fit into four pages"
    clean(llm)


def test_a_lost_device_fails_all_and_says_so_ever_after(made, asked, monkeypatch):
    """An error that does not stick fails its pass alone; one that does, everybody: whoever waits must not wait."""

    def fails(batch):
        raise RuntimeError("CUDA error: device-side assert triggered")

    for lost in (False, True):
        llm = made(max_batch=2)
        requests = [asked(llm, ids) for ids in prompts(60, 61, 62, 50)]
        for request in requests:
            llm.engine.submit(request, llm.tokenizer)
        monkeypatch.setattr("depthdial.engine.step.alive", lambda device, lost=lost: not lost)
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine.runner, "run", fails)
            touched = llm.engine.step()
        ended = [row for request in requests for row in request.rows if row.error]
        assert set(touched) == set(ended) and len(ended) == (4 if lost else len(touched)) and touched
        if lost:
            assert "cpu answers no more" in ended[-1].error and "device-side assert" in ended[-1].error
            for again in (llm.engine.step, lambda llm=llm, ask=requests[0]: llm.engine.submit(ask, llm.tokenizer)):
                with pytest.raises(DeviceLost, match="start again"):
                    again()
            assert llm.engine.scheduler.idle
        else:
            assert llm.engine.lost is None and llm.engine.step()


def test_a_device_is_alive_while_numbers_can_be_made_on_it(monkeypatch):
    assert alive(torch.device("cpu"))
    assert not alive(torch.device("cuda")) or torch.cuda.is_available()

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("of another kind")

    monkeypatch.setattr(torch, "zeros", full)
    assert alive(torch.device("cuda"))


def test_what_can_never_fit_is_refused_at_once(made, asked):
    llm = made(cache_tokens=64)
    with pytest.raises(ValueError, match="cannot fit into a KV cache of 64; raise cache_tokens or lower max_tokens"):
        llm.generate([prompts(60)[0]], None)
    with pytest.raises(ValueError, match="cannot fit"):
        llm.engine.submit(asked(llm, prompts(60)[0]), llm.tokenizer)
    assert llm.engine.scheduler.idle


@pytest.mark.parametrize("length", [1, 30, 64, 90])
def test_samples_share_their_prompt(made, asked, finish, agrees, length: int):
    llm = made(max_batch=3)
    request = asked(llm, prompts(length)[0], n=5, temperature=1.0, max_tokens=9)
    llm.engine.submit(request, llm.tokenizer)
    (output,) = finish(llm, [request])
    agrees(llm, request, output, sampled=True)
    assert len({tuple(sample.token_ids) for sample in output.samples}) == 5
    decoded = 5 * 9
    assert llm.stats.tokens <= length + decoded + (length if length == 1 else 2), "the prompt ran once"
    alone = made(max_batch=1)
    again = asked(alone, request.token_ids, n=5, temperature=1.0, max_tokens=9)
    alone.engine.submit(again, alone.tokenizer)
    assert [s.token_ids for s in finish(alone, [again])[0].samples] == [s.token_ids for s in output.samples]
    clean(llm)


def test_a_failing_pass_fails_its_rows_alone(made, asked, finish, agrees, monkeypatch):
    llm = made(max_batch=2)
    healthy, broken, later = (asked(llm, ids, max_tokens=20) for ids in prompts(8, 5, 6))
    llm.engine.submit(healthy, llm.tokenizer)
    finish(llm, [healthy])
    llm.engine.submit(broken, llm.tokenizer)
    llm.engine.step()
    llm.engine.submit(later, llm.tokenizer)
    run = llm.engine.runner.run

    def fails(batch):
        if any(part.row.request is broken for part in batch.slices):
            raise RuntimeError("out of\nluck")
        return run(batch)

    monkeypatch.setattr(llm.engine.runner, "run", fails)
    llm.engine.scheduler.max_batch = 1  # so that the two are never in one pass
    outputs = finish(llm, [broken, later])
    assert outputs[0].finish_reason == "error" and len(outputs[0].token_ids) == 1
    assert outputs[0].error == "the pass of this request failed: RuntimeError: out of luck"
    agrees(llm, later, outputs[1])
    agrees(llm, healthy, healthy.output())
    with pytest.raises(RuntimeError, match="out of luck"):
        list(llm.follow(broken))
    clean(llm)


def test_a_closed_stream_leaves_nothing_behind(made, agrees):
    llm = made()
    stream = llm.stream(prompts(70)[0])
    next(stream)
    other = llm.stream(prompts(5)[0])
    next(other)
    stream.close()
    assert sum(row.finish_reason is None for row in llm.engine.scheduler.running) == 1
    list(other)
    clean(llm)


def test_two_streams_at_once_give_what_each_gives_alone(made):
    llm = made()
    texts = [[p.token_id for p in llm.stream(ids)] for ids in prompts(30, 4)]
    first, second = (llm.stream(ids) for ids in prompts(30, 4))
    together = [[next(first).token_id], [next(second).token_id]]
    together[0] += [p.token_id for p in first]
    together[1] += [p.token_id for p in second]
    assert together == texts


def test_memory_is_flat_over_many_requests(made, asked, finish):
    llm = made(cache_tokens=64 * 8, max_batch=4)
    rng = random.Random(0)
    texts = [prompts(rng.randrange(1, 100), seed=i)[0] for i in range(60)]
    requests = [asked(llm, ids, max_tokens=rng.randrange(1, 5)) for ids in texts]
    for request in requests:
        llm.engine.submit(request, llm.tokenizer)
    finish(llm, requests)
    clean(llm)
    cache = llm.engine.scheduler.cache
    assert cache.prefixes.idle <= cache.pages and len(cache.prefixes.find([])) == 0
    assert not llm.engine.scheduler.running and not cache._held


@pytest.mark.parametrize("native", [True, False])
def test_an_equal_beginning_runs_once_for_each_setting(made, asked, finish, agrees, native: bool):
    llm = made()
    assert isinstance(llm.engine.runner, NativeRunner)
    if not native:
        llm.engine.runner = llm.engine.runner.plain
    (ids,) = prompts(100)

    def run(tokens: list[int], offset: float):
        request, before = asked(llm, tokens, offset), llm.stats.tokens
        llm.engine.submit(request, llm.tokenizer)
        (output,) = finish(llm, [request])
        agrees(llm, request, output)
        assert llm.stats.tokens - before == len(tokens) - request.cached_tokens + 11
        return request.cached_tokens

    assert run(ids, 0.0) == 0 and run(ids, 0.0) == 64
    assert run(ids, -0.5) == 0, "another offset wrote other K and V"
    assert run(ids, math.inf) == 0
    assert run([*ids[:64], 3, 4, 5], 0.0) == 64
    assert run([9, *ids[1:]], 0.0) == 0 and run(ids, 0.0) == 64
    assert llm.stats.cached_tokens == 3 * 64
    without = made(prefix_cache=False)
    for _ in range(2):
        without.generate([ids])
    assert without.stats.cached_tokens == 0


@pytest.mark.parametrize("method", [*METHODS, *TOYS])
def test_a_conversation_goes_on_from_the_cache(made, asked, finish, agrees, method: str):
    """What was generated is a prefix, too, unless it ran another way than it does where it is read."""
    llm = made(method)
    first = asked(llm, prompts(50)[0], max_tokens=40)
    llm.engine.submit(first, llm.tokenizer)
    (output,) = finish(llm, [first])
    second = asked(llm, [*first.token_ids, *output.token_ids, 7, 8])
    llm.engine.submit(second, llm.tokenizer)
    agrees(llm, second, finish(llm, [second])[0])
    assert second.cached_tokens == (0 if "prompt" in llm.model.converted.method.reads else 64)


@pytest.mark.parametrize("native", [True, False])
def test_whoever_drives_the_engine_holds_its_lock(made, monkeypatch, tmp_path, native: bool):
    """Scoring, reading and timing use the cache and the runner, too: a request that comes meanwhile waits."""
    llm = made(max_batch=4)
    engine, cache = llm.engine, llm.engine.scheduler.cache
    if not native:
        engine.runner = engine.runner.plain
    calls: set[str] = set()

    def guarded(of: Any, name: str) -> None:
        inner = getattr(of, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            assert engine.lock._is_owned(), f"{name} without the lock"
            calls.add(name)
            return inner(*args, **kwargs)

        monkeypatch.setattr(of, name, call)

    for of, names in ((engine.runner, ["run"]), (cache, ["open", "close", "fork", "grow", "shrink", "save"])):
        for name in names:
            guarded(of, name)
    long, short = prompts(70, 5)
    llm.generate([long, short], SamplingParams(max_tokens=4, n=2, temperature=1.0))
    list(llm.stream(short, SamplingParams(max_tokens=3, lossless=True)))
    Scorer(engine, llm.tokenizer).score([[Text(long, 60), Text([*long[:65], 3], 64)]], Dials(0.0))
    Reader(engine, llm.tokenizer, 64).read([long, short], Dials(0.0))
    break_even(engine, llm.model, llm.tokenizer, [0.0], tmp_path)
    assert calls >= {"run", "open", "close", "fork", "grow", "save"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite_stays_with_its_own_text(tiny_model, tiny_tokenizer, adapted, asked, finish, dtype):
    """A token whose embedding is nan: its request ends with an error, others beside it and after it do not notice."""
    base = tiny_model("llama").to(getattr(torch, dtype))
    bad = 7
    llm = LLM.of(
        adapted(base, method_named("flexidepth", dict(METHODS["flexidepth"].example))),
        tiny_tokenizer,
        cache_tokens=64 * 9,
    )
    poison(llm.engine.scheduler.cache)
    (long, short, other) = ([i for i in ids if i != bad] for ids in prompts(90, 12, 13))
    expected = [finish(llm, [submitted(llm, asked(llm, ids))])[0].token_ids for ids in (long, short, other)]
    with torch.no_grad():
        llm.model.get_input_embeddings().weight[bad] = math.nan
    broken = [*long[:80], bad, *long[80:]]
    for drawn in ({"temperature": 1.0}, {"logprobs": 1}):
        for offset in (0.0, math.inf):
            first = asked(llm, broken, offset, **drawn)
            beside = [asked(llm, ids, logprobs=0) for ids in (long, short, other)]
            outputs = finish(llm, [submitted(llm, request) for request in (first, *beside)])
            assert outputs[0].finish_reason == "error" and not outputs[0].token_ids
            assert "logits for this text are not finite" in (outputs[0].error or "")
            healthy = outputs[1:]
            assert all(output.finish_reason == "length" for output in healthy)
            if dtype == "float32":
                assert [output.token_ids for output in healthy] == expected
    clean(llm)
    after = finish(llm, [submitted(llm, asked(llm, ids)) for ids in (long, short, other)])
    if dtype == "float32":
        assert [output.token_ids for output in after] == expected, "pages of a broken text serve others"
    with pytest.raises(ValueError, match="logits are not finite"):
        Scorer(llm.engine, llm.tokenizer).score([[Text(broken, 85)]], Dials(0.0))


def submitted(llm: LLM, request: Any) -> Any:
    llm.engine.submit(request, llm.tokenizer)
    return request
