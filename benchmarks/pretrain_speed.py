"""How fast the models of recipes/pretrain_equal_flops.py train: tokens/s of whole steps, by turns, on one machine.

    python benchmarks/pretrain_speed.py benchmarks/results/DATE-MACHINE-pretrain-speed.json [--threads 1] [--repeats 7]

A step is forward, backward and AdamW on random tokens, in bf16, plain attention, pieces compiled, at the density that
fresh routers have (`kept`). "half" is a dense model with half the layers: what SkipLayer at 50 % should come near.
`work` is multiply-accumulates per token over the dense model's, at the density that was run.
"""

from __future__ import annotations

import argparse
import dataclasses
import runpy
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from depthdial.core.whole import write_json
from depthdial.evaluate.speed.machine import facts
from depthdial.methods import Dense
from depthdial.models.converted import converted_of
from depthdial.models.scratch import Spec, fresh
from depthdial.train.gathered import gather
from depthdial.train.machine import compile_pieces, keep_memory
from depthdial.train.next_token import NextToken

GATHERED = ("skip50", "skip25", "mod")
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "pretrain_equal_flops.py"


class Run:
    """A model with its optimizer."""

    def __init__(self, method: Any, spec: Spec, gathered: bool, compiled: bool):
        self.model = fresh(spec, method)
        self.model.set_attn_implementation("eager")
        if gathered:
            gather(self.model)
        if compiled:
            compile_pieces(self.model)
        self.model.train()
        self.lesson = NextToken(self.model, 0, compiled)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.macs = 0.0

    def step(self, ids: torch.Tensor) -> float:
        """Seconds."""
        begun = time.perf_counter()
        self.lesson.step += 1
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.lesson(self.model(input_ids=ids, use_cache=False), ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        took = time.perf_counter() - begun
        converted = converted_of(self.model)
        self.macs = float(converted.route.token_cost().mean()) * converted.ledger.dense
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", default="12x4@256,vocab=4096,context=256")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--warmup", type=int, default=12, help="steps of each model in which kernels are made")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only", nargs="+", help="models beside the dense one, half among them")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    recipe, spec = runpy.run_path(str(RECIPE)), Spec.parse(args.size)
    models = recipe["models"](spec) | {"half": (Dense(), dataclasses.replace(spec, layers=spec.layers // 2))}
    chosen = {"dense", *(args.only or [*models, "skip50, not gathered"])}
    runs: dict[str, Run] = {}
    for name in [*models, "skip50, not gathered"]:
        if name in chosen:
            method, size = models[name.removesuffix(", not gathered")]
            runs[name] = Run(method, size, name in GATHERED, not args.no_compile)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repeats):
        for name, run in runs.items():
            for _ in range(0 if turn else args.warmup):
                run.step(torch.randint(spec.vocabulary, (args.batch, spec.context)))
            seconds[name].append(run.step(torch.randint(spec.vocabulary, (args.batch, spec.context))))
    tokens, rows = args.batch * spec.context, {}
    for name, run in runs.items():
        rows[name] = {
            "layers": run.model.config.num_hidden_layers,
            "tokens_per_second": round(tokens / median(seconds[name]), 1),
            "of dense": round(median(d / s for d, s in zip(seconds["dense"], seconds[name], strict=True)), 3),
            "work": round(run.macs / runs["dense"].macs, 3),
            "seconds": [round(s, 3) for s in seconds[name]],
        }
        print(f"{name:22s}{rows[name]['tokens_per_second']:>9} tokens/s  {rows[name]['of dense']:.2f} of dense")
    arguments = {k: v for k, v in vars(args).items() if k != "output"}
    write_json(
        args.output,
        {"what": "speed of pre-training", **facts(torch.device("cpu")), "arguments": arguments, "rows": rows},
    )


if __name__ == "__main__":
    main()
