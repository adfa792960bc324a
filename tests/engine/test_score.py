"""Scores against one dense pass of `Routed` over each whole text: the log-probabilities, what ran, and that what texts
share runs once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.laws.toys import TOYS

from depthdial.core.dial import Dials
from depthdial.core.hold import BLOCK, Hold
from depthdial.engine.score import Ran, Scorer, Text
from depthdial.methods import METHODS


@torch.no_grad()
def offsets_of(model, tokens: list[int], start: int, dials: Dials) -> list[float]:
    """The dial at each place of a text that is read up to `start`, and written from there on: where it is held, from
    the reference's own costs, a pass for each block."""
    offsets = [dials.reading] * start + [dials.written] * (len(tokens) - start)
    if dials.hold is None:
        return offsets
    state = dials.hold.begin()
    for first in range(start, len(tokens), BLOCK):
        offsets[first:] = [dials.hold.offset(state)] * (len(tokens) - first)
        model.converted.set(offset=torch.tensor([offsets]))
        model(torch.tensor([tokens]), use_cache=False)
        state = dials.hold.after(state, model.route.token_cost()[0, first : first + BLOCK].tolist())
    return offsets


def by_routed(llm, text: Text, dials: Dials):
    """(log-probability, greedy?, layers and costs by place, offsets) of the reference over the whole text."""
    model, tokens = llm.model, list(text.tokens)
    offsets = offsets_of(model, tokens, text.start, dials)
    read = torch.arange(len(tokens))[None] < text.start
    with torch.no_grad(), model.converted.using(offset=torch.tensor([offsets]), read=read):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    wanted = torch.tensor(text.tokens[text.start :])
    before = logits[text.start - 1 : -1]
    logprob = float(before.log_softmax(-1).gather(1, wanted[:, None]).sum())
    greedy = bool((before.argmax(-1) == wanted).all())
    return logprob, greedy, model.route.layers_used[0].tolist(), model.route.token_cost()[0].tolist(), offsets


def check(llm, groups, offset: float | Dials, room: int = 512) -> None:
    dials = offset if isinstance(offset, Dials) else Dials(offset)
    scorer = Scorer(llm.engine, llm.tokenizer, room)
    tokens = llm.stats.tokens
    found = [score for chunk in scorer.chunks(groups) for score in scorer.score(groups[chunk], dials)]
    ran = llm.stats.tokens - tokens
    assert ran == sum(distinct(group) for group in groups), "what is shared within a group runs once"
    layers, cost = 0, 0.0
    for group, scores in zip(groups, found, strict=True):
        seen: set[tuple[int, ...]] = set()
        for text, score in zip(group, scores, strict=True):
            logprob, greedy, depths, costs, offsets = by_routed(llm, text, dials)
            assert score.logprob == pytest.approx(logprob, abs=2e-4) and score.greedy == greedy
            assert score.dense == sum(offset == math.inf for offset in offsets[text.start - 1 : -1])
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


@pytest.mark.parametrize("method", [*METHODS, *TOYS])
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


HOLD = Hold(0.75, 0.0, 0.1)


@pytest.mark.parametrize("method", [*METHODS, *TOYS])
@pytest.mark.parametrize(
    "dials", [Dials(0.0, math.inf), Dials(0.0, 0.7), Dials(0.0, math.inf, HOLD), Dials(0, None, HOLD)]
)
def test_contexts_are_read_and_continuations_are_written(made, method, dials):
    llm = made(method, max_batch=8)
    if dials.hold is not None and llm.model.converted.program.gaps:
        return
    context, answer = list(range(40, 105)), list(range(200, 250))
    groups = [
        [Text([*context, *answer[:count], 5, 6], len(context)) for count in (50, 20, 3)],  # share what is written, too
        [Text([*context[:30], *answer[:30]], start) for start in (30, 20)],  # what one reads another writes
        [Text([*context, 7], len(context)), Text([*context, 8], len(context))],
    ]
    check(llm, groups, dials)
    found = Scorer(llm.engine, llm.tokenizer).score(groups, dials)
    if dials.read == math.inf:
        assert {score.dense for scores in found for score in scores} == {1}, "from the context's last token"
        contexts = [score.context for scores in found for score in scores if score.context.tokens]
        layers = len(llm.model.converted.program.base_visits)
        each = llm.model.converted.ledger.untouched
        assert all(ran.cost == pytest.approx(ran.tokens * each) for ran in contexts)
        assert all(ran.layers == ran.tokens * layers for ran in contexts)
    skipped = llm.model.converted.program.skips
    assert (found[0][0].scored.layers < found[0][0].scored.tokens * llm.layers) == bool(skipped)


def test_what_is_held_takes_a_pass_a_block(made):
    llm = made(max_batch=4)
    scorer, dials = Scorer(llm.engine, llm.tokenizer), Dials(0.0, math.inf, HOLD)
    texts = [Text(list(range(30 + i, 30 + i + 101)), 20) for i in range(4)]
    before = llm.stats.passes
    apart = [scorer.score([[text]], dials)[0] for text in texts]
    assert llm.stats.passes - before == 4 * 5, "80 tokens that run after 20"
    before = llm.stats.passes
    assert scorer.score([[text] for text in texts], dials) == apart
    assert llm.stats.passes - before == 5, "all texts share them"
    offsets = offsets_of(llm.model, list(texts[0].tokens), 20, dials)
    assert len(set(offsets)) > 3, "the dial moved"


def test_a_score_is_that_of_the_passes_that_would_write_it(made, asked, finish):
    """The log-probabilities of a generated text, as its generation told them."""
    llm, prompt, dials = made(), list(range(40, 70)), Dials(0.0, math.inf, HOLD)
    request = asked(llm, prompt, dials, max_tokens=60, logprobs=0)
    llm.engine.submit(request, llm.tokenizer)
    (out,) = finish(llm, [request])
    ((score,),) = Scorer(llm.engine, llm.tokenizer).score([[Text(prompt + out.token_ids, 30)]], dials)
    told = [told[token] for told, token in zip(out.logprobs, out.token_ids, strict=True)]
    assert score.logprob == pytest.approx(math.fsum(told), abs=1e-3) and score.greedy
    assert score.scored.cost == pytest.approx(59 * out.cost) and score.context.cost == 30 * out.prompt_cost


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
    dials = st.sampled_from([0.0, -0.5, math.inf, Dials(0.0, math.inf), Dials(0.0, None, HOLD)])
    check(llm, groups, data.draw(dials), data.draw(st.sampled_from([5, 64])))


def test_a_chunk_gives_the_same_whatever_ran_before(made):
    llm = made(max_batch=4)
    scorer = Scorer(llm.engine, llm.tokenizer)
    groups = [[Text(list(range(10, 90)), 70)], [Text(list(range(10, 90)), 60), Text([*range(10, 80), 5], 70)]]
    first = scorer.score(groups, Dials(0.0))
    scorer.score([[Text(list(range(100, 190)), 5)]], Dials(0.5))
    llm.generate([list(range(10, 90))])
    assert scorer.score(groups, Dials(0.0)) == first


def test_chunks_fit_and_leave_nothing_out(made):
    llm = made(max_batch=3, cache_tokens=256)
    scorer = Scorer(llm.engine, llm.tokenizer)
    groups = [[Text([i, 4, 5, 6], 2)] * (1 + i % 3) for i in range(9)] + [[Text(list(range(3, 103)), 9)]] * 4
    cuts = list(scorer.chunks(groups))
    assert [i for cut in cuts for i in range(len(groups))[cut]] == list(range(len(groups)))
    assert all(sum(map(len, groups[cut])) <= 3 for cut in cuts) and len(cuts) > 4
    assert list(scorer.chunks([])) == []
    with pytest.raises(ValueError, match="raise cache_tokens"):
        scorer.score([[Text([i, 4], 1) for i in range(3, 8)]], Dials(0.0))
    assert llm.engine.scheduler.cache.free_slots == 3


def test_sums():
    assert Ran().plus([3, 4], [0.5, 1.0]).plus([], []) == Ran(2, 7, 1.5)
