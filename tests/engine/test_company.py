"""A text is the same alone and in company, however it is cut: K, V and tokens, bit for bit, on every instruction set.

What changes the passes: other texts, chunks, the prefix cache, rows that give way and are read again, samples that
share a prompt, drafts that are verified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from depthdial.core.dial import Dials
from depthdial.core.hold import Hold
from depthdial.engine.batch import Batch
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.model_tensors import tensors_of
from depthdial.engine.native import NativeRunner
from depthdial.engine.request import Request, Row
from depthdial.engine.scheduler import Slice
from depthdial.kernels.cpu.build import all_isas
from depthdial.kernels.tensors import PAGE
from depthdial.methods import method_named

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "initializer_range": 0.08}
DTYPES = ("bf16", "int8", "int4")
FAMILY = {"bf16": "qwen2", "int8": "gemma3_text", "int4": "llama"}
"""With biases; with windows and norms around."""

Maker = Callable[..., LLM]
ALIKE, FULL, HELD = Dials(0.0), Dials(0.0, math.inf), Dials(0.0, math.inf, Hold(0.7, 0.0, 0.1))


@pytest.fixture
def on(tiny_model: Callable, tiny_tokenizer: Any, adapted: Callable, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """`on(isa, weights, dials, **engine)`: a small bf16 model of whole tiles, run by that instruction set; dials: of
    texts that ask for no budget."""

    def make(isa: str, weights: str, dials: Dials = ALIKE, **engine: Any) -> LLM:
        base = tiny_model(FAMILY[weights], **{**SIZES, "max_position_embeddings": 512}).bfloat16()
        method = method_named("flexidepth", {"first": 2, "start": 0.0})
        monkeypatch.setattr("depthdial.engine.weights.supported", lambda: (isa.removesuffix("-emulated"),))
        narrow: Any = "auto" if weights == "bf16" else weights
        llm = LLM.of(adapted(base, method), tiny_tokenizer, weights=narrow, **engine)
        vars(llm.budgets).update(dials=lambda budget, read: dials if budget is None else Dials(math.inf, math.inf))
        old = llm.engine.runner
        assert isinstance(old, NativeRunner), "there is no compiler here"
        llm.engine.runner = runner = NativeRunner(old.plain, tensors_of(old.plain.spine, old.plain), isa)
        llm.engine.scheduler.roles = runner.roles
        assert runner.tiles == (isa.startswith("amx") and weights != "int4"), "blocks have no tiles"
        return llm

    return make


def text(seed: int, length: int) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def cut(count: int, at: Sequence[int]) -> list[tuple[int, int]]:
    """(start, count) of the parts of `count` tokens cut at some places."""
    edges = [0, *at, count]
    return [(a, b - a) for a, b in pairwise(edges)]


CUTS = ((), (1,), (16,), (17, 20), (63, 64, 65), (5, 70, 71, 72, 130), tuple(range(10, 140, 9)))
PROMPT, WRITTEN = 120, 20
"""Of a text of 140 tokens."""


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("dials", [ALIKE, FULL])
def test_any_cut_and_any_company_gives_the_same_bits(isa: str, weights: str, dials: Dials, on: Maker, asked: Callable):
    llm = on(isa, weights, cache_tokens=4096)
    cache, found = llm.engine.scheduler.cache, []
    for i, places in enumerate(CUTS):
        row = _row(llm, asked, text(0, PROMPT + WRITTEN), PROMPT, dials)
        others = (
            [_row(llm, asked, text(seed, 40 + 30 * seed), 30, ALIKE if seed % 2 else FULL) for seed in range(1, 4)]
            if i % 2
            else []
        )
        batch, last, at = Batch(cache, 1024, torch.device("cpu")), None, [0] * len(others)
        for start, count in cut(PROMPT + WRITTEN, places):
            mine = Slice(row, start, count)
            beside = []
            for j, other in enumerate(others):
                some = min(1 + 11 * j, other.length - at[j])
                if some:
                    beside.append(Slice(other, at[j], some))
                    at[j] += some
            parts = [*beside, mine]
            parts.sort(key=lambda part: part.count > 1)
            batch.fill(parts)
            passed = llm.engine.runner.run(batch)
            if start + count == row.length:
                assert passed.logits is not None
                ends = [part.row for part in parts if part.completes]
                last = passed.logits[ends.index(row)].clone()
        assert last is not None
        found.append((last, *_kv(llm, row)))
        for each in (row, *others):
            assert each.slot is not None
            cache.close(each.slot)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def _row(llm: LLM, asked: Callable, ids: list[int], prompt: int, dials: Dials) -> Row:
    """A text of which the first tokens are the prompt and the rest is written already."""
    request: Request = asked(llm, ids[:prompt], dials, temperature=1.0)
    row = Row(request, 0, llm.tokenizer)
    row.tokens += ids[prompt:]
    row.slot = llm.engine.scheduler.cache.open()
    assert llm.engine.scheduler.cache.grow(row.slot, 0, len(ids))
    return row


def _kv(llm: LLM, row: Row) -> tuple[Tensor, Tensor]:
    cache = llm.engine.scheduler.cache
    units = cache.table[:, row.slot, : -(-row.length // PAGE)].long()
    k, v = (t[units].transpose(2, 3).flatten(1, 2)[:, : row.length].clone() for t in (cache.k, cache.v))
    return k, v


LENGTHS = (1, 3, 15, 16, 17, 40, 64, 65, 90, 130, 200)
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
LONGER = SamplingParams(max_tokens=36, ignore_eos=True)


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("dials", [ALIKE, HELD])
def test_served_texts_are_the_same_however_they_are_served(isa: str, weights: str, dials: Dials, on: Maker):
    """Alone, all at once, again from the prefix cache, in another order, with drafts."""
    prompts = [text(seed, length) for seed, length in enumerate(LENGTHS)]
    dense = SamplingParams(max_tokens=12, ignore_eos=True, budget=1.0)
    budgets = [(GREEDY if dials is ALIKE else LONGER) if i % 3 else dense for i in range(len(prompts))]
    llm = on(isa, weights, dials, prefix_cache=False)
    alone = [llm.generate([p], params)[0].token_ids for p, params in zip(prompts, budgets, strict=True)]
    llm = on(isa, weights, dials, cache_tokens=4096)
    for _ in range(2):
        assert [out.token_ids for out in llm.generate(prompts, budgets)] == alone
    turned = on(isa, weights, dials, cache_tokens=4096)
    for i in reversed(range(len(prompts))):
        assert turned.generate([prompts[i]], budgets[i])[0].token_ids == alone[i]
    drafted = [SamplingParams(max_tokens=12, ignore_eos=True, lossless=True)] * len(prompts)
    expected = [llm.generate([p], dense)[0].token_ids for p in prompts]
    assert [out.token_ids for out in llm.generate(prompts, drafted)] == expected


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("isa", all_isas())
@pytest.mark.parametrize("dials", [ALIKE, HELD])
def test_rows_that_give_way_are_read_again_as_they_were_written(isa: str, weights: str, dials: Dials, on: Maker):
    prompts, params = [text(seed, 55 + seed) for seed in range(5)], SamplingParams(max_tokens=100, ignore_eos=True)
    llm = on(isa, weights, dials, prefix_cache=False, cache_tokens=4096)
    alone = [llm.generate([p], params)[0].token_ids for p in prompts]
    watched = llm.submit(prompts[0], params)
    while not watched.done:
        llm.engine.step()
    (row,) = watched.rows
    assert (len({offset for *_, offset in row.runs(55, 154)}) > 2) == (dials is HELD), "the dial moves where it is held"
    assert row.token_ids == alone[0] and min(row.depths[1:]) < llm.layers
    for prefixes in (False, True):
        small = on(isa, weights, dials, prefix_cache=prefixes, cache_tokens=384)
        assert [out.token_ids for out in small.generate(prompts, params)] == alone
        assert small.stats.preemptions


@pytest.mark.parametrize("isa", all_isas())
def test_what_was_written_is_read_again_as_a_prompt(isa: str, on: Maker):
    """The next turn of a conversation: pages of a continuation do not stand for those of a prompt of the same tokens,
    unless both have the same bits."""
    first = text(1, 50)
    llm = on(isa, "bf16", cache_tokens=4096)
    (out,) = llm.generate([first], SamplingParams(max_tokens=100, ignore_eos=True))
    second = first + out.token_ids + text(2, 20)
    (again,) = llm.generate([second], GREEDY)
    (fresh,) = on(isa, "bf16").generate([second], GREEDY)
    assert again.token_ids == fresh.token_ids
    # only where both kinds of tokens run the same way do they share pages
    assert (llm.stats.cached_tokens > 0) == (not isa.startswith("amx"))


@pytest.mark.parametrize("isa", all_isas())
def test_samples_of_one_prompt_share_it_and_begin_the_same(isa: str, on: Maker):
    for length in (3, 16, 17, 70):
        params = SamplingParams(max_tokens=8, ignore_eos=True, n=4)
        (out,) = on(isa, "bf16").generate([text(length, length)], params)
        assert len({tuple(sample.token_ids) for sample in out.samples}) == 1


def test_a_text_that_is_not_a_number_ends_with_an_error_and_no_other(made):
    """A token whose embedding is NaN: its text says so, and those before, beside and after it are what they are."""
    for value in (math.nan, math.inf):
        llm = made(prefix_cache=True)
        prompts = [text(seed, 70) for seed in range(4)]
        for prompt in prompts:
            prompt[:] = [3 if token == 299 else token for token in prompt]
        params = [SamplingParams(max_tokens=6, ignore_eos=True, temperature=t, seed=1) for t in (0.0, 1.0, 0.0, 0.0)]
        expected = [out.token_ids for out in llm.generate(prompts, params)]
        llm.engine.runner.plain.spine.embed.data[299, 1] = value
        bad = [*prompts[0][:66], 299, 5, 6]
        found = llm.generate([bad, *prompts, [299]], [params[0], *params, params[1]])
        for broken in (found[0], found[-1]):
            assert broken.finish_reason == "error" and broken.token_ids == []
            assert broken.error is not None and "not finite" in broken.error
        assert [out.token_ids for out in found[1:-1]] == expected
        assert [out.token_ids for out in llm.generate(prompts, params)] == expected


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_the_real_model_says_the_same_in_any_company(weights: Any):
    """Short prompts, which one kernel read alone and another in a batch, at the plug-in's budget and lossless."""
    llm = LLM("smollm2-135m-instruct", weights=weights, cache_tokens=4096)
    prompts = [torch.randint(100, 40000, (n,), generator=torch.Generator().manual_seed(n)).tolist()
               for n in (2, 9, 16, 17, 33, 64, 64, 65, 80)]  # fmt: skip
    kinds: tuple[dict[str, Any], ...] = ({"budget": 0.85}, {"lossless": True}, {"budget": 1.0})
    for options in kinds:
        params = SamplingParams(max_tokens=16, ignore_eos=True, **options)
        alone = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
        again = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
        assert again == alone and [out.token_ids for out in llm.generate(prompts, params)] == alone
