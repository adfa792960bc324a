"""Memory of the engine: its peak beside the bytes it must hold, and whether a thousand requests leave it flat.

    python benchmarks/memory.py [--weights int8] [--requests 1000] --output benchmarks/results/DATE-MACHINE-memory.json

What must be held: weights, plug-in and KV cache, as the process has them. Peaks are the highest resident size (VmHWM of
Linux) less what Python, torch and this package take before anything is loaded, once while loading, when the pages of
the file that is read count too (the kernel takes them back when it needs them), and once while requests of mixed
lengths come and go, in groups of --max-batch; the resident size is noted after each hundred of them.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import Any

import torch

from depthdial import LLM, SamplingParams
from depthdial.core.whole import write_json
from depthdial.engine import weights
from depthdial.engine.config import EngineOptions
from depthdial.engine.native import NativeRunner
from depthdial.evaluate.speed.machine import facts


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM at most so far."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def held(llm: LLM) -> dict[str, int]:
    """Bytes of what must be there. With int8 the engine has matrices of its own, and the model's are given back."""
    cache = llm.engine.scheduler.cache
    parts = {id(p): p for name, p in llm.model.named_parameters() if ".parts." in name}
    base = {id(p): p for p in llm.model.parameters() if id(p) not in parts}
    size = {name: sum(t.numel() * t.element_size() for t in some.values()) for name, some in
            (("weights", base), ("plug-in", parts))}  # fmt: skip
    spine = llm.engine.runner.plain.spine if isinstance(llm.engine.runner, NativeRunner) else None
    if spine is not None and llm.options.weights == "int8":
        matrices = [linear.weight for block in spine.layers for linear in weights.matrices(block).values()]
        tables = {id(table): table for table in (spine.embed, spine.head)}.values()
        size["weights"] += sum(weights.size_of(weight) for weight in (*matrices, *tables))
    return {**size, "cache": sum(t.numel() * t.element_size() for t in (cache.k, cache.v))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--plugin", default="default")
    parser.add_argument("--budget", type=float, default=0.85)
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--cache-tokens", type=int, default=16384)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.zeros(8).matmul(torch.zeros(8, 8))  # what the first product sets up belongs to torch
    before = resident()
    engine = EngineOptions(max_batch=args.max_batch, cache_tokens=args.cache_tokens, weights=args.weights)
    llm = LLM(args.model, args.plugin, args.budget, **engine)
    loaded, told = resident("VmHWM") - before, held(llm)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    draw, after = random.Random(args.seed), []
    for done in range(0, args.requests, args.max_batch):
        prompts = [[draw.randrange(3, 49000) for _ in range(draw.randrange(4, 700))] for _ in range(args.max_batch)]
        llm.generate(prompts, SamplingParams(max_tokens=draw.randrange(1, 12), temperature=0.0, ignore_eos=True))
        if (done // args.max_batch + 1) % max(1, 100 // args.max_batch) == 0:
            after.append(resident())
            print(f"{done + args.max_batch} requests: {after[-1] / 2**20:.0f} MiB", flush=True)
    peak, needed = resident("VmHWM") - before, sum(told.values())
    results: dict[str, Any] = {
        "what": "memory of the engine",
        **facts(torch.device("cpu")),
        "arguments": {name: value for name, value in vars(args).items() if name != "output"},
        "bytes": {"before": before, **told, "loaded_peak": loaded, "peak": peak, "after": after},
        "loaded_peak_over_needed": loaded / needed,
        "peak_over_needed": peak / needed,
        "growth_over_last_half": after[-1] / after[len(after) // 2] if len(after) > 1 else None,
    }
    print(f"needed {needed / 2**20:.0f} MiB; loading took {loaded / needed:.3f}, running {peak / needed:.3f} of it")
    if args.output is not None:
        write_json(args.output, results)


if __name__ == "__main__":
    main()
