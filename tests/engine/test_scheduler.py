"""Which tokens run: decoding rows first, prompts in chunks, first come first served, and who gives way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from depthdial.core.dial import Dials
from depthdial.engine.cache import Cache, Shape
from depthdial.engine.request import Request, Row
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.scheduler import Scheduler, Slice
from depthdial.engine.stats import Stats
from depthdial.kernels.tensors import PAGE


class Letters:
    """A tokenizer with one letter per token."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + i % 26) for i in ids)


def scheduler(pages: int = 8, batch: int = 4, chunk: int = 100) -> Scheduler:
    shape = Shape(1, 1, 2, torch.float32)
    return Scheduler(Cache(shape, pages * PAGE, 4 * PAGE, batch, torch.device("cpu")), batch, chunk, Stats(1))


def add(to: Scheduler, *lengths: int, n: int = 1) -> list[Any]:
    rows = []
    for start, length in enumerate(lengths):
        ids = list(range(start * 1000, start * 1000 + length))
        request = Request(None, ids, SamplingParams(n=n, ignore_eos=True), 0, Dials(0.0), 100)
        request.rows = [Row(request, i, Letters()) for i in range(n)]
        rows += request.rows
        for row in request.rows:
            to.add(row)
    return rows


def run(to: Scheduler) -> list[tuple[Any, int, int]]:
    """One step, in which every complete row gets token 7."""
    slices = to.schedule()
    for part in slices:
        part.row.note(part.start, [1] * part.count, [1.0] * part.count)
        to.ran(part)
        if part.completes:
            part.row.push(7, frozenset())
    return [(part.row, part.start, part.count) for part in slices]


def test_prompts_come_in_chunks_beside_rows_that_decode():
    to = scheduler()
    a, b, c = add(to, 30, 150, 20)
    assert run(to) == [(a, 0, 30), (b, 0, 70)]
    assert run(to) == [(a, 30, 1), (b, 70, 80), (c, 0, 20)]
    assert run(to) == [(a, 31, 1), (b, 150, 1), (c, 20, 1)]
    to.remove(b)
    assert run(to) == [(a, 32, 1), (c, 21, 1)]
    for row in (a, c):
        to.remove(row)
    assert to.idle and to.cache.available == to.cache.pages


def test_no_more_rows_than_fit_the_batch_and_first_come_first_served():
    to = scheduler(batch=2)
    a, b, c, d = add(to, 5, 5, 5, 5)
    run(to)
    assert to.running == [a, b] and list(to.waiting) == [c, d]
    to.remove(c)  # one that waits may leave, too
    to.remove(a)
    run(to)
    assert to.running == [b, d]


def test_a_row_waits_for_its_pages_and_is_not_overtaken():
    to = scheduler(pages=4, chunk=512)
    big, bigger, small = add(to, 150, 150, 3)
    run(to)
    assert to.running == [big] and list(to.waiting) == [bigger, small]


def test_the_last_row_gives_way_and_comes_back_first():
    to = scheduler(pages=4, chunk=512)
    a, b = add(to, PAGE - 1, 2 * PAGE - 1)
    (late,) = add(to, 1)
    run(to)
    assert to.running == [a, b, late] and to.cache.available == 0
    run(to)  # the last places of their pages
    assert run(to) == [(a, PAGE + 1 - 1, 1)], "two need a page: there is one, of the row that came last"
    assert to.stats.preemptions == 2 and list(to.waiting) == [b, late]
    assert b.slot is None and b.computed == 0 and len(b.ran_depths) == 2 * PAGE
    to.remove(a)
    assert [part[0] for part in run(to)] == [b, late]
    assert b.computed == b.length - 1, "its own tokens were computed again"


def test_samples_wait_for_their_prompt_and_share_it():
    to = scheduler(chunk=50)
    rows = add(to, 80, n=3)
    (other,) = add(to, 10)
    assert run(to) == [(rows[0], 0, 50)]
    assert run(to) == [(rows[0], 50, 30), (other, 0, 10)], "who comes later need not wait for them"
    assert run(to) == [(rows[0], 80, 1), (other, 10, 1), (rows[1], 79, 1), (rows[2], 79, 1)]
    tables = {tuple(to.cache.rows[0, row.slot, :1]) for row in rows}
    assert len(tables) == 1, "the full page is one and the same"
    assert len({int(to.cache.rows[0, row.slot, 1]) for row in rows}) == 3, "the open one is not"


def test_an_equal_beginning_is_read_once_at_the_same_setting():
    to = scheduler()
    (first,) = add(to, 100)
    run(to)
    run(to)
    to.remove(first)
    (again,) = add(to, 100)
    assert run(to) == [(again, PAGE, 36)]
    assert again.request.cached_tokens == PAGE and again.ran_depths == [1] * 100
    (exact,) = add(to, PAGE)
    to.remove(again)
    assert run(to) == [(exact, 0, PAGE)], "the last token always runs: it gives the logits"
    (elsewhere,) = add(to, 100)
    elsewhere.request.dials = Dials(0.5)
    assert (elsewhere, 0, 100) in run(to)


def test_what_can_never_fit_is_said():
    to = scheduler(pages=2)
    to.check(2 * PAGE)
    with pytest.raises(ValueError, match=r"129 tokens .* KV cache of 128; raise cache_tokens"):
        to.check(2 * PAGE + 1)
    assert Slice(add(to, 3)[0], 0, 3).completes
