"""What int8 weights cost in quality where they decode: perplexity of text, token by token, over that of bf16.

    python benchmarks/int8_quality.py TEXTS... --output benchmarks/results/DATE-MACHINE-int8.json

Sixteen texts are read side by side, one token of each in a pass, as a batch that decodes reads them; every pass gives
the probability of the next tokens. Rows of 128 tokens from the files' documents, in their order.
"""

from __future__ import annotations

import argparse
import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthdial import LLM
from depthdial.core.whole import write_json
from depthdial.engine.native import NativeRunner
from depthdial.evaluate.speed.machine import facts
from depthdial.kernels.passing import PagedCache, PassOutput, PassTokens
from depthdial.kernels.tensors import PAGE
from depthdial.train.data import read

ROWS, LENGTH = 16, 128


def losses(llm: LLM, texts: Tensor, budget: float) -> Tensor:
    """Nats of each token after the first of its text, fp32 [rows, LENGTH - 1]. texts: int64 [rows, LENGTH]."""
    runner, cache = llm.engine.runner, llm.engine.scheduler.cache
    assert isinstance(runner, NativeRunner), "int8 is for the native kernels"
    native, pages = runner.model, LENGTH // PAGE
    depth, (_, heads, _, size) = native.caches, cache.k.shape
    k, v = (torch.zeros(depth * ROWS * pages, heads, PAGE, size, dtype=cache.k.dtype) for _ in range(2))
    paged = PagedCache(k, v, torch.arange(depth * ROWS * pages).view(depth, ROWS, pages).int())
    keep, score = torch.empty(native.steps, ROWS, dtype=torch.uint8), torch.empty(native.steps, ROWS)
    logits = torch.empty(ROWS, native.vocabulary)
    out = PassOutput(keep, score, logits)
    offsets, rows, found = torch.full((ROWS,), llm.offset_of(budget)), torch.arange(ROWS).int(), []
    for part in texts.split(ROWS):
        of_part = []
        for place in range(LENGTH - 1):
            tokens = PassTokens(part[:, place].contiguous(), torch.full((ROWS,), place).int(), rows, offsets)
            native.forward(tokens, paged, out)
            of_part.append(torch.nn.functional.cross_entropy(logits, part[:, place + 1], reduction="none"))
        found.append(torch.stack(of_part, 1))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 0.85])
    parser.add_argument("--rows", type=int, default=96, help="of each file")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    means: dict[tuple[str, str, float], Tensor] = {}
    for weights in ("auto", "int8"):
        llm = LLM(args.model, budget=min(args.budgets), max_batch=ROWS, weights=weights, prefix_cache=False)
        for file in args.texts:
            many = args.rows * LENGTH
            ids: list[int] = []
            for record in islice(read([file]), 10_000):
                text = record.text or "\n\n".join(m["content"] for m in record.messages or ())
                ids += llm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                if len(ids) >= many:
                    break
            texts = torch.tensor(ids[: len(ids) // (ROWS * LENGTH) * ROWS * LENGTH][:many]).view(-1, LENGTH)
            for budget in args.budgets:
                means[weights, file, budget] = losses(llm, texts, budget)
    for file in args.texts:
        for budget in args.budgets:
            base, ours = (means[weights, file, budget].double() for weights in ("auto", "int8"))
            gap = (ours - base).mean(1)  # texts are independent, their tokens are not
            half = 1.96 * float(gap.std()) / math.sqrt(len(gap))
            row = {
                "text": Path(file).name,
                "budget": budget,
                "tokens": base.numel(),
                "perplexity": {"auto": math.exp(base.mean()), "int8": math.exp(ours.mean())},
                "over": math.exp(gap.mean()),
                "interval": [math.exp(float(gap.mean()) - half), math.exp(float(gap.mean()) + half)],
            }
            rows.append(row)
            low, high = row["interval"]
            print(
                f"{row['text']} at {budget}: {row['over']:.4f} of bf16's perplexity ({low:.4f} to {high:.4f})",
                flush=True,
            )
    if args.output is not None:
        write_json(
            args.output, {"what": "int8 quality", **facts(torch.device("cpu")), "model": args.model, "rows": rows}
        )


if __name__ == "__main__":
    with torch.no_grad():
        main()
