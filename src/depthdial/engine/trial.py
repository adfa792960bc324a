"""Time single decode passes of made-up texts on an engine, to learn where skipping pays (`breakeven`)."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from depthdial import __version__
from depthdial.core.dial import Dials
from depthdial.engine.breakeven import ROWS, BreakEven, Trial, cached, measure
from depthdial.engine.request import Request
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.step import Engine
from depthdial.models.convert import converted_of
from depthdial.models.fingerprint import config_hash

PROMPT, STEPS = 12, 6
"""Tokens of a text and passes of a trial: together below a page, so that no trial leaves one in the prefix cache."""


def break_even(engine: Engine, model: Any, tokenizer: Any, offsets: Sequence[float], folder: Path) -> BreakEven:
    """Of this engine on this machine; kept in `folder` from an earlier time where there was one. The engine's runner
    goes by it from now on.

    model: the converted one that the engine was made of; offsets: places of its dial, the more apart the better. No
    request may be running.
    """
    ledger = converted_of(model).ledger
    top = ledger.expected(1.0) / ledger.dense
    rows = [count for count in ROWS if count <= engine.scheduler.max_batch]
    key = _key(engine, model, rows, offsets)
    with engine.lock:
        engine.runner.break_even = None  # measured without
        found = cached(key, folder, lambda: measure(Trials(engine, tokenizer), key, ledger.floor, top, offsets, rows))
        engine.runner.break_even = found
    return found


class Trials:
    """Runs a few decode passes of so many texts; tells the time and the true cost of one."""

    def __init__(self, engine: Engine, tokenizer: Any, clock: Callable[[], float] = time.perf_counter):
        self._engine, self._tokenizer, self._clock = engine, tokenizer, clock

    def __call__(self, rows: int, offset: float) -> Trial:
        engine, device = self._engine, self._engine.batch.cache.k.device
        vocabulary = len(self._tokenizer)
        texts = torch.randint(vocabulary, (rows, PROMPT), generator=torch.Generator().manual_seed(rows)).tolist()
        params = SamplingParams(max_tokens=STEPS + rows + 1, ignore_eos=True, seed=0)
        # a row more may start a step later: all have their first token before the clock starts
        requests = [Request(None, text, params, 0, Dials(offset), params.max_tokens, f"trial {offset}".encode())
                    for text in texts]  # fmt: skip
        try:
            for request in requests:
                engine.submit(request, self._tokenizer)
            started = [request.rows[0] for request in requests]
            while not all(row.token_ids or row.error for row in started):
                engine.step()
            _wait(device)
            begun = self._clock()
            for _ in range(STEPS):
                engine.step()
            _wait(device)
            seconds = (self._clock() - begun) / STEPS
        finally:
            for request in requests:
                engine.cancel(request)
        if failed := next((row.error for row in started if row.error), None):
            raise RuntimeError(failed)
        costs = [cost for row in started for cost in row.ran_costs[-STEPS:]]
        return Trial(seconds, 1.0 if offset == math.inf else sum(costs) / len(costs))


def _key(engine: Engine, model: Any, rows: Sequence[int], offsets: Sequence[float]) -> dict[str, str]:
    device: torch.device = engine.batch.cache.k.device
    gpu = device.type == "cuda"
    return {
        "depthdial": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if gpu else _processor(),
        "instructions": "" if gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "runner": type(engine.runner).__name__,
        "model": config_hash(model.config),
        "method": repr(converted_of(model).method),
        "dtype": str(model.dtype),
        "rows": repr(list(rows)),
        "offsets": repr([round(offset, 4) for offset in offsets]),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
