"""Scores against one dense pass of `Routed` over each whole text: the log-probabilities, what ran, and that what texts
share runs once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthdial.core.dial import Dials
from depthdial.engine.score import Ran, Scorer, Text
from depthdial.methods import METHODS, method_named

RECTANGULAR = [name for name in METHODS if method_named(name, {}).kv in ("project", "none")]


def by_routed(llm, text: Text, offset: float):
    """(log-probability, greedy?, layers and costs by place) of one pass of the reference over the whole text."""
    model = llm.model
    model.route.offset = offset
    with torch.no_grad():
        logits = model(torch.tensor([list(text.tokens)]), use_cache=False).logits[0].float()
    wanted = torch.tensor(text.tokens[text.start :])
    before = logits[text.start - 1 : -1]
    logprob = float(before.log_softmax(-1).gather(1, wanted[:, None]).sum())
    greedy = bool((before.argmax(-1) == wanted).all())
    return logprob, greedy, model.route.layers_used[0].tolist(), model.route.token_cost()[0].tolist()


def check(llm, groups, offset: float, room: int = 512) -> None:
    scorer = Scorer(llm.engine, llm.tokenizer, room)
    tokens = llm.stats.tokens
    found = [score for chunk in scorer.chunks(groups) for score in scorer.score(groups[chunk], Dials.same(offset))]
    ran = llm.stats.tokens - tokens
    assert ran == sum(distinct(group) for group in groups), "what is shared within a group runs once"
    layers, cost = 0, 0.0
    for group, scores in zip(groups, found, strict=True):
        seen: set[tuple[int, ...]] = set()
        for text, score in zip(group, scores, strict=True):
            logprob, greedy, depths, costs = by_routed(llm, text, offset)
            assert score.logprob == pytest.approx(logprob, abs=2e-4) and score.greedy == greedy
            for place in range(len(text.tokens) - 1):
                beginning = tuple(text.tokens[: place + 1])
                if place < shared(group) and beginning in seen:
                    continue
                seen.add(beginning)
                layers, cost = layers + depths[place], cost + costs[place]
    total = [sum(x) for x in zip(*(s.context for g in found for s in g), strict=True)]
    rest = [sum(x) for x in zip(*(s.scored for g in found for s in g), strict=True)]
    assert total[0] + rest[0] == ran and total[1] + rest[1] == layers
    assert total[2] + rest[2] == pytest.approx(cost)
    assert llm.engine.scheduler.cache.free_slots == llm.max_batch, "every slot is given back"


def shared(group) -> int:
    runs = [tuple(text.tokens[:-1]) for text in group]
    starts = {text.start for text in group}
    most = min(*map(len, runs), *(starts if len(starts) > 1 else []), 10**9)  # what one reads and another writes is not
    return next((i for i in range(most) if len({run[i] for run in runs}) > 1), most)


def distinct(group) -> int:
    return shared(group) + sum(len(text.tokens) - 1 - shared(group) for text in group)


@pytest.mark.parametrize("method", RECTANGULAR)
@pytest.mark.parametrize("offset", [0.0, 0.7, math.inf])
def test_scores_are_those_of_the_reference(made, method, offset):
    llm = made(method, max_batch=8)
    context = list(range(40, 110))  # longer than a page, and not a whole number of pages
    choices = [[7, 8, 9], [7, 8], [11], [12, 13, 14, 15, 16]]
    groups = [
        [Text(context + choice, len(context)) for choice in choices],
        [Text([5, 6, 7], 1)],
        [Text([5, 6, 7, i], 3) for i in (8, 9)],  # one-token choices: the context alone runs
    ]
    check(llm, groups, offset)


@pytest.mark.parametrize("room", [1, 3, 17, 40])
def test_passes_of_any_size_give_the_same(made, room):
    llm = made(max_batch=6)
    groups = [[Text([i, *range(50, 70), i, 4, 5], 21 - i), Text([i, *range(50, 65), 9], 4)] for i in range(3)]
    check(llm, groups, 0.0, room)


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_texts(made, data):
    llm = made(max_batch=4)
    token = st.integers(3, 299)
    groups = []
    for _ in range(data.draw(st.integers(1, 4))):
        stem = data.draw(st.lists(token, min_size=0, max_size=70))
        group = []
        for _ in range(data.draw(st.integers(1, 4))):
            tokens = stem + data.draw(st.lists(token, min_size=2, max_size=6))
            group.append(Text(tokens, data.draw(st.integers(1, len(tokens) - 1))))
        groups.append(group)
    check(llm, groups, data.draw(st.sampled_from([0.0, -0.5, math.inf])), data.draw(st.sampled_from([5, 64])))


def test_a_chunk_gives_the_same_whatever_ran_before(made):
    llm = made(max_batch=4)
    scorer = Scorer(llm.engine, llm.tokenizer)
    groups = [[Text(list(range(10, 90)), 70)], [Text(list(range(10, 90)), 60), Text([*range(10, 80), 5], 70)]]
    first = scorer.score(groups, Dials.same(0.0))
    scorer.score([[Text(list(range(100, 190)), 5)]], Dials.same(0.5))
    llm.generate([list(range(10, 90))])
    assert scorer.score(groups, Dials.same(0.0)) == first


def test_chunks_fit_and_leave_nothing_out(made):
    llm = made(max_batch=3, cache_tokens=256)
    scorer = Scorer(llm.engine, llm.tokenizer)
    groups = [[Text([i, 4, 5, 6], 2)] * (1 + i % 3) for i in range(9)] + [[Text(list(range(3, 103)), 9)]] * 4
    cuts = list(scorer.chunks(groups))
    assert [i for cut in cuts for i in range(len(groups))[cut]] == list(range(len(groups)))
    assert all(sum(map(len, groups[cut])) <= 3 for cut in cuts) and len(cuts) > 4
    assert list(scorer.chunks([])) == []
    with pytest.raises(ValueError, match="raise cache_tokens"):
        scorer.score([[Text([i, 4], 1) for i in range(3, 8)]], Dials.same(0.0))
    assert llm.engine.scheduler.cache.free_slots == 3


def test_sums():
    assert Ran().plus([3, 4], [0.5, 1.0]).plus([], []) == Ran(2, 7, 1.5)
