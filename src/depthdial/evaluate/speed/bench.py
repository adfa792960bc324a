"""The speed benchmark: everything in one run, one JSON. What can be asked: `options`; who takes part: `lineup`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from depthdial.engine.breakeven import BreakEven
from depthdial.engine.native import NativeRunner
from depthdial.engine.trial import break_even
from depthdial.evaluate.speed.ideal import dense_bytes
from depthdial.evaluate.speed.limits import Gauge, MachineLimits
from depthdial.evaluate.speed.lineup import SpeedLineup
from depthdial.evaluate.speed.machine import facts
from depthdial.evaluate.speed.measure import run_interleaved
from depthdial.evaluate.speed.options import SpeedOptions
from depthdial.evaluate.speed.prompts import prompt_lengths, prompts
from depthdial.evaluate.speed.rows import Figures, speed_rows
from depthdial.evaluate.speed.verify import verify_rows
from depthdial.models.converted import converted_of
from depthdial.models.gguf import cache_root

VERIFY_ROUNDS = 15
Report = Callable[[str, int, int], None]
"""Told what is measured now, how many runs are done and how many there will be."""


def bench(options: SpeedOptions, report: Report = lambda *_: None, explain: bool = False) -> Figures:
    """Measure, and give everything as JSON has it. explain: with the engine's break-even.

    Raises ValueError or OSError, one line, for what cannot be loaded or run.
    """
    report("loading", 0, 1)
    with contextlib.closing(SpeedLineup(options)) as lineup:
        return _results(lineup, report) | ({"break_even": _break_even(lineup).to_json()} if explain else {})


def _results(lineup: SpeedLineup, report: Report) -> Figures:
    options, llm = lineup.options, lineup.llm
    device = llm.model.device
    size = dense_bytes(converted_of(llm.model).ledger, lineup.sizes(llm))
    reader = llm.engine.runner.model.read if isinstance(llm.engine.runner, NativeRunner) else None
    gauge, count, rows, limits = Gauge(size, llm.model.dtype, device, reader=reader), 0, [], []
    taking = {regime: [s for s in lineup.subjects if s.takes(regime)] for regime in options.regimes}
    total = sum(subject.warmups + options.repeats for subjects in taking.values() for subject in subjects)
    for regime, subjects in taking.items():

        def advance(name: str = regime.name) -> None:
            nonlocal count
            count += 1
            report(name, count, total)

        texts = prompts(llm.tokenizer, prompt_lengths(regime.batch, regime.prompt), options.text)
        runs = run_interleaved(subjects, texts, regime, options.repeats, gauge, advance)
        rows += speed_rows(runs, subjects, lineup.references, lineup.dense)
        limits.append(_limits(regime, runs.limits))
    return {
        "what": "speed",
        **facts(device),
        "model": options.to_json()["model"],
        "plugin": None if llm.plugin is None else llm.plugin.name,
        "arguments": options.to_json(),
        "peers": lineup.peers,
        "left_out": lineup.left_out,
        "limits": limits,
        "verify": verify_rows(lineup.subjects, VERIFY_ROUNDS),
        "rows": rows,
    }


def _limits(regime: Any, limits: MachineLimits | None) -> Figures:
    assert limits is not None
    return {"regime": regime.kind, "batch": regime.batch, "prompt_tokens": regime.prompt, **limits.to_json()}


def _break_even(lineup: SpeedLineup) -> BreakEven:
    llm = lineup.llm
    offsets = [llm.offset_of(budget) for budget in lineup.options.budgets]
    return break_even(llm.engine, llm.model, llm.tokenizer, offsets, cache_root() / "break-even")
