"""What it costs to verify drafts: a native pass of a few tokens of one text, over a pass of one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from depthdial.engine.native import NativeRunner
from depthdial.evaluate.speed.subjects import EngineSubject, SpeedSubject
from depthdial.kernels.cpu.native import NativeModel
from depthdial.kernels.passing import Decided, PagedCache, PassOutput, PassTokens, Waiting
from depthdial.kernels.tensors import PAGE

COUNTS = (1, 5, 8, 16)
"""Tokens of a pass."""


def verify_rows(subjects: Sequence[SpeedSubject], rounds: int) -> list[dict[str, Any]]:
    """For each dense engine that runs natively: seconds of a pass by its number of tokens, the untouched base at place
    64 of a text; medians over rounds in turns, and of their ratios to a pass of one token."""
    rows = []
    for subject in subjects:
        if subject.kind != "dense" or not isinstance(subject, EngineSubject):
            continue
        if isinstance(runner := subject.llm.engine.runner, NativeRunner):
            timed = _timed(runner.model, rounds)
            ratios = {count: median(s / one for s, one in zip(timed[count], timed[1], strict=True)) for count in COUNTS}
            seconds = {str(count): median(each) for count, each in timed.items()}
            rows.append(
                {"title": subject.title, "seconds": seconds, "over_one": {str(n): r for n, r in ratios.items()}}
            )
    return rows


def _nobody(_: Waiting) -> Decided:
    raise AssertionError("the untouched base waits for no decision")


def _timed(model: NativeModel, rounds: int) -> dict[int, list[float]]:
    shape = (2 * model.caches, model.kv_shape[0], PAGE, model.kv_shape[1])
    k, v = torch.zeros(2, *shape, dtype=model.dtype).unbind()
    cache = PagedCache(k, v, torch.arange(2 * model.caches, dtype=torch.int32).view(model.caches, 1, 2))
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    for turn in range(rounds + 1):
        for count in COUNTS:
            places, steps = torch.arange(PAGE, PAGE + count, dtype=torch.int32), model.steps
            tokens = PassTokens(
                torch.arange(count), places, torch.zeros(count, dtype=torch.int32), torch.full((count,), math.inf)
            )
            keep, score = torch.ones(steps, count, dtype=torch.uint8), torch.empty(steps, count)
            out = PassOutput(keep, score, argmax=torch.zeros(count, dtype=torch.int64))
            begin = time.perf_counter()
            model.forward(tokens, cache, out, decide=_nobody)
            if turn:  # the first warms up
                found[count].append(time.perf_counter() - begin)
    return found
