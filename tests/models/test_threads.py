"""One converted model in several threads: each runs as it would alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from tests.laws.toys import Exiting, Looping
from torch import Tensor

from depthdial.methods import FlexiDepth, Random, Recursive
from depthdial.models.checkpoint import attach
from depthdial.models.dial import set_budget

THREADS = 4
METHODS = [
    FlexiDepth(first=2, start=0.0),
    Random(first=1, rate=0.6),
    Exiting(),
    Looping(),
    Recursive(loops=3, first=1, last=4, rank=2),
]


def in_threads(work: Callable[[int], Any], many: int) -> list[Any]:
    """Results of work(0), work(1), ... from several threads that begin together."""
    begin, order = Barrier(THREADS), count()
    results: dict[int, Any] = {}

    def run() -> None:
        begin.wait()
        for i in iter(lambda: next(order), None):
            if i >= many:
                return
            results[i] = work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(run) for _ in range(THREADS)]:
            each.result()
    return [results[i] for i in range(many)]


def rows(seed: int) -> Tensor:
    """int64 [1 or 2, 4 to 12]"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (1 + seed % 2, 4 + seed % 9), generator=generator)


def alike(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(autouse=True)
def _turns_change_often() -> Iterator[None]:
    """Threads take turns so often that a pass is hardly ever alone."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(
    ("method", "many"),
    [*((method, 60) for method in METHODS), pytest.param(METHODS[0], 400, marks=pytest.mark.slow)],
    ids=lambda each: type(each).__name__ if each in METHODS else str(each),
)
def test_forwards_in_threads_are_those_of_one(tiny_model: Callable, adapted: Callable, method: Any, many: int):
    check_forwards(adapted(tiny_model("llama"), method), method, many)


def test_blocks_in_fp32_run_in_threads_beside_a_base_in_bf16(tiny_model: Callable, adapted: Callable):
    """Their weights are replaced by narrow ones while they run, for one thread at a time."""
    model: Any = adapted(tiny_model("llama").bfloat16(), Exiting())
    assert {weight.dtype for weight in model.converted.own.parameters()} == {torch.float32}
    check_forwards(model, Exiting(), 60)
    assert {weight.dtype for weight in model.converted.own.parameters()} == {torch.float32}
    assert copy.deepcopy(model).converted.narrowing is not model.converted.narrowing


def check_forwards(model: Any, method: Any, many: int) -> None:
    offsets = (0.0, -0.7, 0.5, torch.tensor([0.3, -0.3]))

    @torch.no_grad()
    def work(i: int) -> tuple[Tensor, ...]:
        ids, offset = rows(i), offsets[i % 4]
        with model.converted.using(offset=offset if len(ids) == 2 or i % 4 < 3 else 0.1):
            logits = model(ids).logits
        return logits, model.route.token_cost(), model.route.keep()

    alone = [work(i) for i in range(many)]
    together = in_threads(work, many)
    assert all(map(alike, together, alone))
    costs = {float(cost.mean()) for _, cost, _ in alone}
    assert len(costs) > (1 if method.steady else 10), "they do differ"


@pytest.mark.parametrize("many", [12, pytest.param(48, marks=pytest.mark.slow)])
def test_texts_in_threads_are_those_of_one(tiny_model: Callable, tiny_plugin: Path, many: int):
    model: Any = attach(tiny_model("llama"), tiny_plugin)
    set_budget(model, 0.8)

    def work(i: int) -> tuple[Tensor]:
        told = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
        return (model.generate(rows(i), **told),)

    alone = [work(i) for i in range(many)]
    assert all(map(alike, in_threads(work, many), alone))
    assert model.converted.threads.dials is None
