"""The GPU benchmark on tiny sizes, in Triton's interpreter, from its arguments to its table and JSON."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = "--hidden 32 --intermediate 64 --layers 2 --heads 4 --kv-heads 2 --vocabulary 100 --device cpu --no-compile"


@pytest.fixture
def gpu(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("gpu", "gpu_cases"):
        sys.modules.pop(name, None)
    return import_module("gpu")


def test_all_cases_are_measured_and_told(gpu, tmp_path, capsys):
    file = tmp_path / "results.json"
    sizes = "--batches 2 --context 3 --prompt 17 --repeats 1 --warm-ups 0 --probe 16 --rounds 1 --calibration 4"
    gpu.main([*TINY.split(), *sizes.split(), "--output", str(file)])
    results = json.loads(file.read_text())
    assert [case["name"] for case in results["cases"]] == ["decode, batch 2", "prefill, 17 tokens"]
    for case in results["cases"]:
        assert set(case["seconds"]) == {"hugging face", "dense", "adaptive"}
        assert case["work"]["adaptive"]["operations"] > 0
    prefill = results["cases"][1]
    assert 0.5 <= prefill["layers_run"] < 1
    assert prefill["work"]["adaptive"]["operations"] < prefill["work"]["dense"]["operations"]
    assert "of its limit" in capsys.readouterr().out


def test_limits_take_the_slower_of_memory_and_arithmetic(gpu):
    cases: Any = import_module("gpu_cases")
    limits = cases.Limits(10.0, 100.0)
    assert limits.least(cases.Work(50, 100)) == 5.0
    assert limits.least(cases.Work(50, 1000)) == 10.0


def test_work_follows_the_route(gpu):
    args = gpu._parser().parse_args([*TINY.split(), "--rounds", "0"])
    with torch.no_grad():
        model = gpu.adaptive(gpu.base(args, torch.device("cpu")), args)
    work = vars(import_module("gpu_cases"))["work"]
    positions = torch.tensor([9])
    none, every = (torch.full((2, 1), n, dtype=torch.uint8) for n in (0, 1))
    layer = 2 * 32 * 32 + 3 * 64 * 32  # q and o, and the MLP
    adapter, router = 3 * 4 * 32, 2 * 32
    low, high = (work(model, keep, positions, 1, True) for keep in (none, every))
    # the lower layer has no adapter, the upper one has; both attend to 10 tokens with 2 heads of K and V
    assert high.bytes - low.bytes == 2 * (2 * layer - adapter + 2 * 10 * 2 * 2 * 8)
    assert high.operations - low.operations == 2 * (2 * layer - adapter + 2 * 2 * 10 * 32)
    assert high.bytes - work(model, every, positions, 1, False).bytes == 2 * router
