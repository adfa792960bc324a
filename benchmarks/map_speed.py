"""What recording costs: tokens/s of mapping beside the plain forward passes that it needs, on the same texts.

    python benchmarks/map_speed.py benchmarks/results/DATE-MACHINE-map-speed.json [--texts 40] [--repeats 3]

Texts are those of the shipped map, in passes of 2,048 tokens. `forward` calls the converted model at the budget,
logits included; `forward, base` the same at full depth; `engine` the prefill of `LLM` (which skips what is skipped).
Mapping without the base needs the first, mapping with it the first two. Runs take turns; medians are told.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from depthdial import LLM, SamplingParams, load
from depthdial.maps.record import Recorder
from depthdial.maps.store import read
from depthdial.maps.texts import Text
from depthdial.models.convert import route_of

MAP = Path(__file__).parent / "maps" / "smollm2-135m-instruct-flexidepth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.85)
    args = parser.parse_args()
    model, tokenizer = load("smollm2-135m-instruct", budget=args.budget)
    rows = read(MAP).rows
    rows = rows[:: len(rows) // args.texts][: args.texts]
    texts = [Text(row.token_ids.tolist(), row.generated.tolist(), row.id) for row in rows]
    full, bare = (Recorder(model, tokenizer, base=base) for base in (True, False))
    llm, route = LLM.of(model, tokenizer, args.budget, prefix_cache=False), route_of(model)
    offset = route.offset
    assert isinstance(offset, float)

    def forward(at: float) -> None:
        ordered = sorted((list(text.ids) for text in texts), key=len)
        route.offset = at
        while ordered:
            count = max(n for n in range(1, len(ordered) + 1) if n == 1 or n * len(ordered[n - 1]) <= 2048)
            batch, ordered = ordered[:count], ordered[count:]
            padded = [ids + [0] * (len(batch[-1]) - len(ids)) for ids in batch]
            with torch.no_grad():
                model(torch.tensor(padded), use_cache=False)
        route.offset = offset

    runs: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(offset),
        "forward, base": lambda: forward(math.inf),
        "engine": lambda: llm.generate([list(text.ids) for text in texts], SamplingParams(max_tokens=1)),
        "map without base": lambda: bare.rows(texts),
        "map": lambda: full.rows(texts),
    }
    tokens, seconds = sum(len(text.ids) for text in texts), {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "what": "tokens/s of mapping and of the forward passes it needs",
        "tokens": tokens,
        "budget": args.budget,
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "arch": platform.machine()},
        "tokens_per_second": {name: round(tokens / time_, 1) for name, time_ in median.items()},
        "seconds": {name: [round(t, 3) for t in times] for name, times in seconds.items()},
        "map without base, of forward": round(median["forward"] / median["map without base"], 3),
        "map, of forward and base": round((median["forward"] + median["forward, base"]) / median["map"], 3),
        "map, of forward": round(median["forward"] / median["map"], 3),
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
