"""Where each token of a text runs, and what passes make of it: prompts that are read in full meet no router."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.core.dial import Dials
from depthdial.core.hold import BLOCK, Hold
from depthdial.engine.batch import Batch, Passed
from depthdial.engine.dials import Held, runs
from depthdial.engine.llm import LLM
from depthdial.engine.native import NativeRunner
from depthdial.engine.request import Row
from depthdial.engine.scheduler import Slice

HOLD = Hold(0.7, 0.3, 0.1)


def text(seed: int, length: int) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@given(costs=st.lists(st.floats(0.4, 1.0), max_size=70), cuts=st.lists(st.integers(0, 70), max_size=5))
@settings(deadline=None)
def test_held_offsets_follow_from_the_costs_alone(costs: list[float], cuts: list[int]):
    held, state = Held(HOLD), HOLD.begin()
    for end in sorted({*(min(cut, len(costs)) for cut in cuts), len(costs)}):
        held.see(costs[:end])
    expected = [HOLD.offset(state)]
    for i, cost in enumerate(costs):
        state = HOLD.after(state, [cost])
        if (i + 1) % BLOCK == 0:
            expected.append(HOLD.offset(state))
    assert held.offsets == expected


@given(prompt=st.integers(1, 40), start=st.integers(0, 90), count=st.integers(1, 60), moves=st.booleans())
@settings(deadline=None)
def test_runs_leave_no_place_out(prompt: int, start: int, count: int, moves: bool):
    held = Held(HOLD) if moves else None
    if held is not None:
        held.see([0.9] * 160)
    dials = Dials(0.3, math.inf, HOLD if moves else None)
    parts = list(runs(dials, held, prompt, start, start + count))
    assert [place for begin, end, _ in parts for place in range(begin, end)] == list(range(start, start + count))
    for begin, end, offset in parts:
        for place in range(begin, end):
            block = (place - prompt) // BLOCK
            assert offset == (math.inf if place < prompt else 0.3 if held is None else held.offsets[block])
    assert held is None or len(set(held.offsets)) > 3


def watched(llm: LLM) -> list[tuple[bool, int, int]]:
    """From now on, of each pass: is it untouched, its tokens, and those of them that are read."""
    seen, inner = [], llm.engine.runner.run

    def run(batch: Batch) -> Passed:
        seen.append((batch.untouched, batch.size, batch.reading))
        return inner(batch)

    vars(llm.engine.runner).update(run=run)
    return seen


@pytest.mark.parametrize("native", [True, False])
def test_a_pass_over_prompts_that_are_read_in_full_meets_no_router(
    made: Callable, asked: Callable, finish: Callable, native: bool
):
    """It reads the bytes that the base's would, and no more."""
    read = {}
    for dials in (Dials(0.0, math.inf), Dials(math.inf), Dials(0.0)):
        llm: LLM = made(max_batch=4)
        if not native and isinstance(llm.engine.runner, NativeRunner):
            llm.engine.runner = llm.engine.runner.plain
        seen = watched(llm)
        requests = [asked(llm, text(i, 30), dials, max_tokens=1) for i in range(3)]
        for request in requests:
            llm.engine.submit(request, llm.tokenizer)
        finish(llm, requests)
        assert seen == [(dials.reading == math.inf, 90, 90)]
        assert llm.stats.native_tokens == (90 if native else 0)
        read[dials] = llm.stats.weight_bytes
    full, base, skipping = read.values()
    assert full == base != skipping


def test_prompts_in_full_and_routed_tokens_share_a_native_pass(made: Callable, asked: Callable):
    """A pass of four kinds of tokens; each comes out as in a pass of its own, bit for bit."""
    llm: LLM = made(max_batch=4)
    plain = llm.engine.runner
    assert isinstance(plain, NativeRunner), "there is no compiler here"
    cache, rows = llm.engine.scheduler.cache, []
    kinds = ((Dials(0.0, math.inf), 8), (Dials(0.0, math.inf, HOLD), 8), (Dials(math.inf), 20), (Dials(0.0), 20))
    for i, (dials, prompt) in enumerate(kinds):
        row = Row(asked(llm, text(i, prompt), dials), 0, llm.tokenizer)
        row.tokens, row.slot = text(i, 20), cache.open()
        assert cache.grow(row.slot, 0, 20)
        rows.append(row)
    batch = Batch(cache, 128, torch.device("cpu"))

    def run(*parts: Slice) -> tuple[list[int], np.ndarray]:
        tokens = llm.stats.native_tokens
        batch.fill(parts)
        passed = plain.run(batch)
        assert llm.stats.native_tokens - tokens == batch.size, "on the fast path"
        assert passed.keep is not None or batch.untouched
        keep = np.ones((llm.layers, batch.size), bool) if passed.keep is None else passed.keep.astype(bool)
        return passed.depths, keep.copy()

    def kv(row: Row) -> list[Any]:
        units = cache.rows[:, row.slot, 0]
        return [part[units, :, :20].clone() for part in (cache.k, cache.v)]

    together = run(*(Slice(row, 0, 20) for row in rows))
    assert not batch.untouched and batch.reading == 8 + 8 + 20 + 20
    assert (
        batch.offsets.tolist()
        == [math.inf] * 8
        + [0.0] * 12
        + [math.inf] * 8
        + [HOLD.offset(HOLD.begin())] * 12
        + [math.inf] * 20
        + [0.0] * 20
    )
    found = [kv(row) for row in rows]
    for i, row in enumerate(rows):
        depths, keep = run(Slice(row, 0, 20))
        assert depths == together[0][20 * i : 20 * (i + 1)]
        assert np.array_equal(keep, together[1][:, 20 * i : 20 * (i + 1)])
        assert all(torch.equal(a, b) for a, b in zip(kv(row), found[i], strict=True))
    layers = [together[0][20 * i : 20 * (i + 1)] for i in range(4)]
    assert set(layers[0][:8]) == set(layers[1][:8]) == set(layers[2]) == {llm.layers}
    assert min(layers[0][8:]) < llm.layers and min(layers[1][8:]) < llm.layers and min(layers[3]) < llm.layers
