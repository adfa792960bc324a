"""What recording costs: tokens/s of mapping beside the plain forward passes that it needs, on the same texts.

    python benchmarks/map_speed.py benchmarks/results/DATE-MACHINE-map-speed.json [--texts 40] [--repeats 3]

Texts are those of the shipped map, in passes of 2,048 tokens. `prefill` is the engine reading them as prompts at the
budget, `prefill, base` at full depth: mapping without the base needs the first, mapping with it both, and all logits of
the base beside. `Routed` is the dense definition at the budget, logits included. Runs take turns; medians are told.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from depthdial import LLM, SamplingParams, load
from depthdial.core.whole import write_json
from depthdial.evaluate.speed.machine import facts
from depthdial.maps.record import Recorder
from depthdial.maps.store import read_map
from depthdial.maps.texts import MapText
from depthdial.models.converted import converted_of

MAP = Path(__file__).parent / "maps" / "smollm2-135m-instruct-flexidepth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.85)
    args = parser.parse_args()
    model, tokenizer = load("smollm2-135m-instruct", budget=args.budget)
    rows = read_map(MAP).rows
    rows = rows[:: len(rows) // args.texts][: args.texts]
    texts = [MapText(row.token_ids.tolist(), row.generated.tolist(), row.id) for row in rows]
    llm = LLM.of(model, tokenizer, args.budget, prefix_cache=False)
    offset = llm.offset_of(None)
    full, bare = (Recorder(model, tokenizer, offset, base=base, engine=llm.engine) for base in (True, False))
    scored = Recorder(model, tokenizer, offset, scores=True)

    def forward() -> None:
        ordered = sorted((list(text.ids) for text in texts), key=len)
        converted_of(model).set(offset=offset)
        while ordered:
            count = max(n for n in range(1, len(ordered) + 1) if n == 1 or n * len(ordered[n - 1]) <= 2048)
            batch, ordered = ordered[:count], ordered[count:]
            padded = [ids + [0] * (len(batch[-1]) - len(ids)) for ids in batch]
            with torch.no_grad():
                model(torch.tensor(padded), use_cache=False)

    def prefill(budget: float) -> object:
        return llm.generate([list(text.ids) for text in texts], SamplingParams(max_tokens=1, budget=budget))

    runs: dict[str, Callable[[], object]] = {
        "prefill": lambda: prefill(args.budget),
        "prefill, base": lambda: prefill(1.0),
        "map without base": lambda: bare.rows(texts),
        "map": lambda: full.rows(texts),
        "Routed": forward,
        "map with scores, by Routed": lambda: scored.rows(texts),
    }
    tokens, seconds = sum(len(text.ids) for text in texts), {name: [] for name in runs}
    for turn in range(args.repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first pass of each kind makes its kernels
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {
        "map without base, of prefill": [
            a / b for a, b in zip(seconds["prefill"], seconds["map without base"], strict=True)
        ],
        "map, of prefill and base": [
            (a + b) / c for a, b, c in zip(*(seconds[n] for n in ("prefill", "prefill, base", "map")), strict=True)
        ],
        "map, of prefill": [a / b for a, b in zip(seconds["prefill"], seconds["map"], strict=True)],
    }
    result = {
        "what": "tokens/s of mapping and of the prefill it needs",
        **facts(model.device),
        "tokens": tokens,
        "budget": args.budget,
        "tokens_per_second": {name: round(tokens / time_, 1) for name, time_ in median.items()},
        "seconds": {name: [round(t, 3) for t in times] for name, times in seconds.items()},
        "ratios": {name: round(statistics.median(each), 3) for name, each in ratios.items()},
    }
    write_json(args.output, result)
    for part in ("tokens_per_second", "ratios"):
        for name, value in result[part].items():
            print(f"{name:32s}{value:>10}")


if __name__ == "__main__":
    main()
