"""What executors count of bytes is what `core.work` says of the route that the dense reference takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.laws.toys import TOYS

from depthdial.core.layers import Part, Router
from depthdial.core.work import Path, Sizes, work
from depthdial.engine.batch import Batch
from depthdial.engine.llm import LLM
from depthdial.engine.native import NativeRunner
from depthdial.engine.request import Row
from depthdial.engine.runner import Runner, TorchRunner
from depthdial.engine.scheduler import Slice
from depthdial.evaluate.speed.routes import decode_passes, paths
from depthdial.methods import METHODS

SIZES = Sizes(weight=4, part=4, cache=4, hidden=32)
OFFSETS = (0.0, -0.8, 0.4)
LENGTHS = (70, 12, 7)
PROMPT = 2
"""Of methods that go by where it ends."""


def decoded(llm: LLM, runner: Runner, asked: Callable) -> tuple[int, int, list[int]]:
    """Bytes of weights and of keys of one pass over the last token of each of three texts; and its depths."""
    cache, made = llm.engine.scheduler.cache, []
    batch = Batch(cache, 256, torch.device("cpu"))
    for text, offset in zip(texts(), OFFSETS, strict=True):
        row = Row(asked(llm, text[:PROMPT] if runner.by_prompt else text, offset, temperature=1.0), 0, llm.tokenizer)
        row.tokens, row.slot = text, cache.open()
        assert cache.grow(row.slot, 0, len(text))
        batch.fill([Slice(row, 0, len(text) - 1)])
        runner.run(batch)
        made.append(row)
    before = runner.stats.weight_bytes, runner.stats.kv_bytes
    batch.fill([Slice(row, row.length - 1, 1) for row in made])
    passed = runner.run(batch)
    return runner.stats.weight_bytes - before[0], runner.stats.kv_bytes - before[1], passed.depths


def texts() -> list[list[int]]:
    return [
        torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(i)).tolist()
        for i, length in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("method", [*METHODS, *TOYS])
def test_counters_are_the_ledgers(made: Callable, asked: Callable, method: str):
    llm: LLM = made(method)
    model: Any = llm.model
    runner = llm.engine.runner
    read = [[offset] * length for offset, length in zip(OFFSETS, LENGTHS, strict=True)]
    (path,) = decode_passes(
        paths(model, texts(), read, [PROMPT] * 3 if runner.by_prompt else LENGTHS),
        [length - 1 for length in LENGTHS],
        1,
        True,
    )
    expected = work(model.converted.ledger, path, SIZES)
    assert not path.ran.all() or not model.converted.program.skips, "something is left out"
    if isinstance(runner, NativeRunner):
        weights, keys, depths = decoded(llm, runner, asked)
        assert weights == expected.weights - folded(runner, path) + whole(runner, path)
        assert keys == expected.keys
        assert sum(depths) == path.visits(model.converted.program)
        runner = runner.plain
    assert isinstance(runner, TorchRunner)
    weights, keys, _ = decoded(llm, runner, asked)
    assert weights >= expected.weights and keys >= expected.keys, "whole parts, and whole pages"
    assert (weights - expected.weights) <= 0.1 * expected.weights


def waiting(runner: NativeRunner, path: Path, by_python: bool) -> list[Part]:
    """Parts that decide at steps where somebody waits, of those that Python decides in a native pass, or the others."""
    open_ = set() if runner._open is None else set(runner._open._parts)
    steps = [s for s in runner.plain.parts if path.here[s].any() and (s in open_) == by_python]
    parts = [part for s in steps for part in runner.plain.parts[s].values()]
    return [part for part in parts if isinstance(part, Part) and part.runs_for == "all"]


def folded(runner: NativeRunner, path: Path) -> int:
    """Bytes of the routers' vectors, which the kernels hold with norms and biases and do not count."""
    routers = waiting(runner, path, by_python=False)
    return 4 * sum(part.enc.out_features for part in routers if isinstance(part, Router))


def whole(runner: NativeRunner, path: Path) -> int:
    """Bytes of parts that Python asks, beyond those of their products: there they are counted whole."""
    parts = waiting(runner, path, by_python=True)
    return sum(4 * (sum(w.numel() for w in part.parameters()) - part.macs) for part in parts)
