"""Lossless mode: the base's own text whatever is drafted, by whom, how long, and in whose company."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.laws.cover import ODD, PLAIN

from depthdial.engine import step
from depthdial.engine.acceptance import Prices
from depthdial.engine.llm import LLM
from depthdial.engine.output import RequestOutput
from depthdial.engine.request import Request
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.speculate import MOST, Speculator, accepted
from depthdial.models.block import spine_of
from depthdial.models.families import FAMILIES


def speculator(llm: LLM, longest: int = MOST - 1, slope: float = 0.0) -> Speculator:
    """Drafts whose cost is known beforehand: without a slope they cost nothing, and are made as long as may be."""
    made = Speculator(llm.stats.speculation, Prices(lambda: 0.0, slope), longest)
    llm.engine.speculator = made
    return made


@pytest.fixture(scope="session")
def drafted(asked: Callable) -> Callable[..., Request]:
    """`drafted(llm, ids, offset, cost, **params)`: a lossless request whose drafts run at an offset."""

    def ask(llm: LLM, ids: list[int], offset: float = 0.0, cost: float = 0.0, **params: Any) -> Request:
        request = asked(llm, ids, math.inf, lossless=True, **params)
        request.draft_offset, request.draft_cost = offset, cost
        return request

    return ask


def run(llm: LLM, finish: Callable, *requests: Request) -> list[RequestOutput]:
    for request in requests:
        llm.engine.submit(request, llm.tokenizer)
    return finish(llm, list(requests))


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Some of whose tokens come again, so that there is something to look up."""
    rng = random.Random(seed)
    return [([rng.randrange(3, 300) for _ in range(length)] * 2)[: length + length // 2] for length in lengths]


def plain(llm: LLM) -> LLM:
    """The same without native kernels."""
    llm.engine.runner = llm.engine.runner.plain  # pyright: ignore[reportAttributeAccessIssue]
    return llm


def same(llm: LLM, finish: Callable, asked: Callable, lossless: Request) -> RequestOutput:
    """Run a lossless request, and the same one without drafts on an engine that never drafted; all must agree."""
    (found,) = run(llm, finish, lossless)
    agree(llm, finish, asked, lossless, found)
    return found


def agree(llm: LLM, finish: Callable, asked: Callable, lossless: Request, found: RequestOutput) -> None:
    params = {**vars(lossless.params), "lossless": False, "draft_budget": None, "budget": None}
    base = asked(llm, lossless.token_ids, math.inf, **params)
    (wanted,) = run(llm, finish, base)
    for got, want in zip(found.samples, wanted.samples, strict=True):
        assert got.token_ids == want.token_ids
        assert got.text == want.text and got.finish_reason == want.finish_reason
        assert got.depths == want.depths == [llm.layers] * len(got.token_ids)
        assert got.logprobs is None or [list(p) for p in got.logprobs] == [list(p) for p in want.logprobs or ()]
        for mine, theirs in zip(got.logprobs or (), want.logprobs or (), strict=True):
            assert list(mine.values()) == pytest.approx(list(theirs.values()), abs=1e-4)


@pytest.mark.parametrize(
    ("family", "native"),
    [pytest.param(family, native, id=f"{family}-{'native' if native else 'torch'}",
                  marks=[] if native or family in (PLAIN, ODD) else [pytest.mark.slow])
     for family in FAMILIES for native in (True, False)],
)  # fmt: skip
def test_greedy_text_is_the_bases_in_every_family(made, asked, drafted, finish, agrees, family: str, native: bool):
    llm = made("flexidepth", family, max_batch=4)
    llm = llm if native else plain(llm)
    speculator(llm)
    for ids in prompts(20, 3, 60):
        request = drafted(llm, ids, max_tokens=25)
        agrees_but_for_costs(llm, request, same(llm, finish, asked, request))
    counted = llm.stats.speculation
    assert counted.drafted["model"] and counted.tokens > counted.rounds, "some drafts were right"


def agrees_but_for_costs(llm: LLM, request: Request, output: RequestOutput) -> None:
    """The text is the dense reference's, too."""
    model, start = llm.model, len(request.token_ids)
    with torch.no_grad(), model.converted.using(offset=math.inf):
        logits = model(torch.tensor([request.token_ids + output.token_ids]), use_cache=False).logits[0]
    assert output.token_ids == logits[start - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("longest", [1, 2, 3, 5, 7, 15])
def test_every_length_of_drafts_gives_the_same_text(made, asked, drafted, finish, longest: int, temperature: float):
    llm = made(max_batch=4)
    speculator(llm, longest)
    for ids, offset in zip(prompts(20, 62, 9), (0.0, -1.0, math.inf), strict=True):
        same(llm, finish, asked, drafted(llm, ids, offset, temperature=temperature, max_tokens=20, logprobs=2))
    counted = llm.stats.speculation
    assert max(counted.drafted.values()) and counted.tokens > counted.rounds


@pytest.mark.parametrize("method", ["static", "random", "skiplayer", "dense"])
def test_any_method_drafts(made, asked, drafted, finish, method: str):
    llm = made(method, max_batch=4)
    speculator(llm)
    offset = math.inf if method == "dense" else 0.0
    same(llm, finish, asked, drafted(llm, prompts(20)[0], offset, max_tokens=20))
    assert bool(llm.stats.speculation.drafted["model"]) == (method != "dense"), "the bare base looks up alone"


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
def test_rows_of_all_kinds_share_a_batch(made, asked, drafted, finish, agrees, native: bool):
    llm = made(max_batch=4) if native else plain(made(max_batch=4))
    llm.engine.scheduler.chunk = 9
    speculator(llm, 4)
    texts = prompts(20, 7, 33, 12, 5, 40)
    lossless = [
        drafted(llm, ids, offset, max_tokens=15 + i, temperature=float(i == 2), n=1 + (i == 1))
        for i, (ids, offset) in enumerate(zip(texts[:4], (0.0, -1.0, 0.5, math.inf), strict=True))
    ]
    others = [asked(llm, ids, offset) for ids, offset in zip(texts[4:], (0.0, -0.7), strict=True)]
    outputs = run(llm, finish, *lossless[:2], others[0], *lossless[2:], others[1])
    for request, output in zip(others, (outputs[2], outputs[5]), strict=True):
        agrees(llm, request, output)
    for request, output in zip(lossless, (*outputs[:2], *outputs[3:5]), strict=True):
        agree(llm, finish, asked, request, output)
    cache = llm.engine.scheduler.cache
    assert cache.available == cache.pages and cache.free_slots == 4, "what was rolled back is given back"


def test_text_ends_inside_accepted_drafts(made, asked, drafted, finish):
    llm = made(max_batch=2)
    speculator(llm)
    (ids,) = prompts(20)
    (whole,) = run(llm, finish, drafted(llm, ids, max_tokens=24))
    for end in {whole.token_ids[5], whole.token_ids[9]}:
        llm.ends = frozenset({end})
        found = same(llm, finish, asked, drafted(llm, ids, max_tokens=24, ignore_eos=False))
        assert found.finish_reason == "stop" and found.token_ids[-1] == end
    llm.ends = frozenset()
    stop = whole.samples[0].pieces[6].text + whole.samples[0].pieces[7].text
    assert same(llm, finish, asked, drafted(llm, ids, max_tokens=24, stop=stop)).finish_reason == "stop"
    for most in range(1, 9):
        found = same(llm, finish, asked, drafted(llm, ids, max_tokens=most))
        assert len(found.token_ids) == most and found.finish_reason == "length"
    room = drafted(llm, (ids * 10)[: llm.context - 5], max_tokens=100)
    assert len(same(llm, finish, asked, room).token_ids) == 5, "drafts do not reach beyond the context"


def test_work_is_counted_and_paid_by_the_tokens_it_gave(made, drafted, finish):
    llm = made(max_batch=2, prefix_cache=False)
    speculator(llm, 3)
    (ids,) = prompts(20)
    (output,) = run(llm, finish, drafted(llm, ids, max_tokens=30))
    counted, verified = llm.stats.speculation, sum(llm.stats.speculation.drafted.values())
    assert counted.tokens == 29, "all but the one of the prompt's pass"
    assert counted.tokens <= counted.rounds + sum(counted.accepted.values()) <= counted.tokens + 3
    assert counted.drafted["model"] == counted.draft_passes
    assert llm.stats.tokens == len(ids) + counted.rounds + verified + counted.draft_passes
    assert llm.stats.passes == 1 + counted.rounds + counted.draft_passes
    assert llm.stats.rows_run < llm.stats.tokens * llm.layers, "drafts skip layers"
    spent = counted.rounds + counted.draft_cost
    costs = [piece.cost for piece in output.samples[0].pieces]
    assert sum(costs[1:]) == pytest.approx(spent, rel=0.1), "the last round may give more than is taken"
    assert counted.ideal_speedup == pytest.approx(29 / spent)


def test_drafts_that_cannot_pay_are_not_made_but_for_a_probe_now_and_then(made, asked, drafted, finish):
    llm = made(max_batch=2)
    speculator(llm, slope=5.0)
    (ids,) = prompts(8)
    same(llm, finish, asked, drafted(llm, ids, cost=0.9, max_tokens=100))
    counted = llm.stats.speculation
    assert counted.draft_passes == 0, "not even if all were right"
    assert counted.drafted["lookup"] <= 3 and counted.rounds >= 96
    speculator(llm, slope=0.0)
    run(llm, finish, drafted(llm, ids, cost=0.85, max_tokens=100))
    assert 0 < counted.draft_passes <= 30, "they could pay, are tried, are mostly wrong, and given up"


def test_a_text_that_repeats_itself_is_looked_up(made, asked, drafted, finish):
    """Where a layer adds nothing, a token alone decides the next one: greedy text runs into a loop."""
    llm = made(max_batch=1)
    with torch.no_grad():
        for block in spine_of(llm.model).layers:
            for weight in (block.o.weight, block.down.weight):
                assert isinstance(weight, torch.Tensor)
                weight.zero_()
    speculator(llm, slope=0.05)
    same(llm, finish, asked, drafted(llm, prompts(8)[0], math.inf, max_tokens=110))
    counted = llm.stats.speculation
    assert counted.draft_passes == 0 and counted.accepted["lookup"] > 30
    assert counted.ideal_speedup > 1.5


def test_a_prompt_read_in_full_is_shared_by_all_that_read_it_so(made):
    llm = made()
    (ids,) = prompts(70)

    def cached(params: SamplingParams) -> int:
        before = llm.stats.cached_tokens
        llm.generate([ids], params)
        return llm.stats.cached_tokens - before

    lossless, base = SamplingParams(4, lossless=True), SamplingParams(4, budget=1.0)
    full, skipping = SamplingParams(4, prompt_budget=1.0), SamplingParams(4)
    assert [cached(params) for params in (lossless, base, full, lossless)] == [0, 64, 64, 64]
    assert [cached(params) for params in (skipping, skipping, base)] == [0, 64, 64]


def test_a_draft_that_fails_ends_its_rows_alone(made, asked, drafted, finish, agrees, monkeypatch):
    llm = made(max_batch=3)
    speculator(llm, 4)
    broken, healthy = drafted(llm, [*range(5, 15)]), asked(llm, prompts(9)[0])
    inner = llm.engine.runner.run

    def fails(batch: Any) -> Any:
        if any(part.drafting for part in batch.slices):
            raise RuntimeError("out of luck")
        return inner(batch)

    monkeypatch.setattr(llm.engine.runner, "run", fails)
    outputs = run(llm, finish, broken, healthy)
    assert outputs[0].finish_reason == "error" and "out of luck" in (outputs[0].error or "")
    agrees(llm, healthy, outputs[1])


TEXTS, PLACES = 1500, 3


def chi_square(llm: LLM, drafted: Callable, finish: Callable) -> float:
    """The probability that the base's own distribution gives frequencies as far off as those of sampled texts."""
    ids = random.Random(4).sample(range(3, 300), 12)
    counts: Counter[tuple[int, ...]] = Counter()
    params = {"temperature": 0.7, "top_k": 3, "max_tokens": PLACES}
    (output,) = run(llm, finish, drafted(llm, ids, n=TEXTS, **params))
    counts.update(tuple(sample.token_ids) for sample in output.samples)
    statistic, cells = 0.0, 0
    for text, chance in texts_of_the_base(llm, ids).items():
        if chance * TEXTS >= 5:
            statistic += (counts[text] - chance * TEXTS) ** 2 / (chance * TEXTS)
            cells += 1
    assert cells > 8
    return float(torch.special.gammaincc(torch.tensor((cells - 1) / 2).double(), torch.tensor(statistic / 2).double()))


def texts_of_the_base(llm: LLM, ids: list[int]) -> dict[tuple[int, ...], float]:
    """Every continuation with its probability, by the dense model: the three likeliest tokens at each place."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(PLACES):
        with torch.no_grad(), llm.model.converted.using(offset=math.inf):
            logits = llm.model(torch.tensor([[*ids, *text] for text in found]), use_cache=False).logits[:, -1]
        top = (logits / 0.7).topk(3)
        found = {
            (*text, token): chance * share
            for text, tokens, shares in zip(found, top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True)
            for chance in [found[text]]
            for token, share in zip(tokens, shares, strict=True)
        }
    return found


def test_sampled_texts_follow_the_bases_distribution(made, drafted, finish, monkeypatch):
    llm = made(max_batch=5)
    speculator(llm, 2)
    assert chi_square(llm, drafted, finish) > 0.01
    assert llm.stats.speculation.drafted["model"] > TEXTS, "by drafts, some of them wrong"
    assert 0 < llm.stats.speculation.accepted["model"] < llm.stats.speculation.drafted["model"]
    monkeypatch.setattr(step, "accepted", lambda drafts, drawn: [*drafts, drawn[-1]])
    assert chi_square(llm, drafted, finish) < 1e-6, "drafts that are always taken follow the plug-in's"


@pytest.mark.parametrize(
    ("drafts", "drawn", "wanted"),
    [([], [4], [4]), ([4, 5], [4, 5, 6], [4, 5, 6]), ([4, 5], [4, 7, 6], [4, 7]), ([4, 5], [9, 5, 6], [9])],
)
def test_the_first_wrong_draft_is_replaced_and_ends_the_round(drafts: list, drawn: list, wanted: list):
    assert accepted(drafts, drawn) == wanted
