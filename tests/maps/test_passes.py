"""An engine's passes give what those of `Routed` give, in its own way: every token at the dial's depth and no other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from depthdial.core.dial import Dials
from depthdial.core.hold import BLOCK, Hold
from depthdial.engine.llm import LLM
from depthdial.maps.passes import EnginePasses, RoutedPasses, TextJob, passes_of
from depthdial.methods import SkipLayer
from depthdial.models.converted import converted_of
from depthdial.models.scratch import Spec, fresh

TEXTS = [[5], list(range(4, 90)), [7, 8, 9], [9] * 70]
JOBS = [TextJob(text, len(text)) for text in TEXTS]


def both(model, tokenizer, offset: float | Dials, base: bool = True, alternatives: int = 0, room: int = 128):
    """The passes of `Routed` and of an engine, and the engine's `LLM`."""
    llm = LLM.of(model, tokenizer, prefix_cache=False)
    dials = offset if isinstance(offset, Dials) else Dials(offset)
    slow, fast = (
        passes_of(model, tokenizer, dials, engine, False, base, alternatives, room) for engine in (None, llm.engine)
    )
    assert isinstance(slow, RoutedPasses) and isinstance(fast, EnginePasses)
    return slow, fast, llm


@pytest.mark.parametrize("offset", [-0.5, 0.0, math.inf])
@pytest.mark.parametrize("room", [1, 16, 2048])
def test_an_engine_gives_what_routed_gives(tiny_converted, tiny_tokenizer, offset, room):
    slow, fast, _ = both(tiny_converted, tiny_tokenizer, offset, alternatives=2, room=room)
    for text, expected, result in zip(TEXTS, slow(JOBS), fast(JOBS), strict=True):
        assert result.ran.shape == (len(text), 6) and result.ran.dtype == bool
        assert np.array_equal(result.ran, expected.ran) and result.scores is None
        assert np.allclose(result.costs, expected.costs) and result.costs.shape == (len(text),)
        here, there = result.expectation, expected.expectation
        assert here is not None and there is not None
        assert torch.allclose(here.entropy, there.entropy, atol=1e-4)
        # the last token's own place tells nothing: nobody knows what follows it
        assert torch.allclose(here.surprisal[:-1], there.surprisal[:-1], atol=1e-4)
        assert torch.equal(here.ids, there.ids)
        assert torch.allclose(here.probabilities, there.probabilities, atol=1e-4)


@pytest.mark.parametrize("room", [16, 2048])
@pytest.mark.parametrize("hold", [None, Hold(0.8, -0.4, 0.3)])
def test_what_is_read_and_what_is_written(tiny_converted, tiny_tokenizer, hold, room):
    """One dial for each; where a budget is held, both ways follow it block by block."""
    dials = Dials(-0.4, math.inf, hold)
    slow, fast, _ = both(tiny_converted, tiny_tokenizer, dials, room=room)
    jobs = [
        TextJob(list(range(4, 90)), 10),
        TextJob([9] * 70, 1),
        TextJob([7, 8, 9], 3),
        TextJob([*range(100, 150)], 3),
    ]
    result = fast(jobs)
    for job, expected, own in zip(jobs, slow(jobs), result, strict=True):
        assert np.array_equal(own.ran, expected.ran) and np.allclose(own.costs, expected.costs, atol=1e-6)
        assert own.ran[: job.read].all() and (own.costs[: job.read] == 1).all()
        assert len(job.ids) == job.read or own.costs[job.read :].mean() < 0.97, "something was skipped"
    if hold is not None:
        costs, state = result[0].costs[10:].tolist(), hold.begin()
        offsets = [hold.offset(state := hold.after(state, costs[i : i + BLOCK])) for i in range(0, len(costs), BLOCK)]
        assert len({hold.start, *offsets}) > 2, "the dial moves"
        free = both(tiny_converted, tiny_tokenizer, Dials(-0.4, math.inf))[1](jobs[:1])
        assert not np.array_equal(free[0].ran, result[0].ran)


def test_skipped_layers_are_not_run(tiny_converted, tiny_tokenizer):
    _, fast, llm = both(tiny_converted, tiny_tokenizer, -0.5, base=False)
    before = llm.stats.rows.copy()
    result = fast(JOBS)
    assert np.array_equal(llm.stats.rows - before, sum(one.ran.sum(0) for one in result))
    assert all(one.expectation is None for one in result) and any(not one.ran.all() for one in result)


def test_the_base_is_run_once_where_it_is_all_that_is_asked_for(tiny_converted, tiny_tokenizer):
    _, fast, llm = both(tiny_converted, tiny_tokenizer, math.inf)
    before = llm.stats.tokens
    fast(JOBS)
    assert llm.stats.tokens - before == sum(map(len, TEXTS))


def test_a_model_with_its_own_routers_is_asked_itself(tiny_tokenizer):
    model = fresh(Spec.parse("6x4@64,context=128"), SkipLayer(density=0.5), tiny_tokenizer).eval()
    slow, fast, llm = both(model, tiny_tokenizer, 0.0)
    before = llm.stats.tokens
    slowly, quickly = slow(JOBS), fast(JOBS)
    assert llm.stats.tokens - before == sum(map(len, TEXTS)), "one pass tells both"
    assert 0 < sum(one.ran.sum() for one in quickly) < 6 * sum(map(len, TEXTS))
    for text, expected, result in zip(TEXTS, slowly, quickly, strict=True):
        assert np.array_equal(result.ran, expected.ran)
        converted_of(model).set(offset=0.0)
        with torch.no_grad():
            message = model(input_ids=torch.tensor([text]), use_cache=False).logits[0].log_softmax(-1)
        surprise = -message[:-1].gather(-1, torch.tensor(text[1:])[:, None])[:, 0]
        for one in (expected, result):
            assert one.expectation is not None
            assert torch.allclose(one.expectation.surprisal[:-1], surprise, atol=1e-4)


def test_scores_need_routed(tiny_converted, tiny_tokenizer):
    llm = LLM.of(tiny_converted, tiny_tokenizer)
    passes = passes_of(tiny_converted, tiny_tokenizer, Dials(0.0), llm.engine, True, False, 0, 128)
    assert isinstance(passes, RoutedPasses)
    scores = passes([TextJob([4, 5, 6], 3)])[0].scores
    assert scores is not None and scores.shape == (3, 4)


def test_what_the_cache_has_no_room_for_is_read_by_routed(tiny_converted, tiny_tokenizer):
    llm = LLM.of(tiny_converted, tiny_tokenizer, cache_tokens=64)
    slow, fast = (
        passes_of(tiny_converted, tiny_tokenizer, Dials(0.0), engine, False, True, 0, 512)
        for engine in (None, llm.engine)
    )
    before = llm.stats.tokens
    for expected, result in zip(slow(JOBS), fast(JOBS), strict=True):
        assert np.array_equal(result.ran, expected.ran) and result.expectation is not None
    assert llm.stats.tokens - before == 2 * sum(len(text) for text in TEXTS if len(text) <= 64)
