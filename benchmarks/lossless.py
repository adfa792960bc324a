"""Lossless decoding beside dense: the same tokens, how many of them a second, and how many the counted bytes promise.

    python benchmarks/lossless.py --output benchmarks/results/DATE-MACHINE-lossless.json

Each kind of prompt is answered by the untouched base with and without drafts, by turns; seconds count from the first
token on. The promise is tokens over passes of the base, drafts at their true cost (`Speculation.ideal_speedup`).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from depthdial import LLM, SamplingParams
from depthdial.core.whole import write_json
from depthdial.engine.stats import Speculation
from depthdial.evaluate.speed.machine import facts
from depthdial.evaluate.speed.measure import spread
from depthdial.evaluate.speed.prompts import PASSAGES

PROMPTS = {
    "copy": f"Repeat the following text word for word.\n\n{PASSAGES[2]}",
    "code edit": f"Rename `balance` to `funds` in this code and print the whole code again.\n\n{PASSAGES[1]}",
    "summary": f"Summarise the following text, in its own words.\n\n{PASSAGES[5]}",
    "story": "Tell me a story about a fox that learns to swim.",
    "explanation": "Why is the sky blue, and why is it red in the evening?",
}
REPETITIVE = ("copy", "code edit", "summary")


def run(llm: LLM, ids: list[int], params: SamplingParams) -> tuple[list[int], float, Speculation]:
    """The answer, tokens per second after the first, and what speculation did."""
    seen = llm.engine.scheduler.stats.speculation = llm.engine.speculator.stats = Speculation()
    request = llm.submit(ids, params)
    row = request.rows[0]
    while not row.token_ids and row.finish_reason is None:
        llm.engine.step()
    begun, had = time.perf_counter(), len(row.token_ids)
    while row.finish_reason is None:
        llm.engine.step()
    took = time.perf_counter() - begun
    if row.error is not None or len(row.token_ids) == had:
        raise SystemExit(row.error or "the answer ended with its first token: there is nothing to time")
    return list(row.token_ids), (len(row.token_ids) - had) / took, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--plugin", default="default")
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, at most")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    llm = LLM(args.model, args.plugin, max_batch=1, cache_tokens=4096, prefix_cache=False, weights=args.weights)
    rows: list[dict[str, Any]] = []
    print("| prompt | temperature | tokens | dense, tokens/s | lossless | ratio | promised | share | same tokens |")
    print("|---|---|---|---|---|---|---|---|---|")
    for temperature in args.temperatures:
        for name, text in PROMPTS.items():
            ids = llm.tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
            ids = list(ids if isinstance(ids, list) else ids["input_ids"])
            common = {"max_tokens": args.tokens, "temperature": temperature, "seed": 0, "budget": 1.0}
            ways = [SamplingParams(**common), SamplingParams(**common, lossless=True)]
            for params in ways:
                run(llm, ids, params)
            pairs = [[run(llm, ids, params) for params in ways] for _ in range(args.repeats)]
            promised = median(lossless[2].ideal_speedup for _, lossless in pairs)
            ratio = median(lossless[1] / dense[1] for dense, lossless in pairs)
            drafted, accepted = (
                {source: sum(getattr(pair[1][2], what)[source] for pair in pairs) for source in ("lookup", "model")}
                for what in ("drafted", "accepted")
            )
            row = {
                "prompt": name,
                "repetitive": name in REPETITIVE,
                "temperature": temperature,
                "tokens": len(pairs[0][0][0]),
                "same_tokens": all(dense[0] == lossless[0] for dense, lossless in pairs),
                "dense_tokens_per_second": spread([dense[1] for dense, _ in pairs]),
                "lossless_tokens_per_second": spread([lossless[1] for _, lossless in pairs]),
                "ratio": spread([lossless[1] / dense[1] for dense, lossless in pairs]),
                "promised": promised,
                "drafted": drafted,
                "accepted": accepted,
            }
            rows.append(row)
            rates = [row[f"{way}_tokens_per_second"]["median"] for way in ("dense", "lossless")]
            told = [f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{ratio:.2f}", f"{promised:.2f}", f"{ratio / promised:.0%}"]
            same = "yes" if row["same_tokens"] else "NO"
            print("| " + " | ".join([name, f"{temperature:g}", str(row["tokens"]), *told, same]) + " |", flush=True)
    if args.output is not None:
        told = {name: value for name, value in vars(args).items() if name != "output"}
        write_json(args.output, {"what": "lossless", **facts(torch.device("cpu")), "arguments": told, "rows": rows})


if __name__ == "__main__":
    main()
