"""Time our `LM` in lm-evaluation-harness beside the harness's own `hf` model: the same base, task and items, dense.

    python benchmarks/harness_speed.py --data-dir DATA --tasks hellaswag,lambada_openai --limit 20 --output FILE.json

Both run every task in turn, `--repeats` times, in one process; of `hf` the best of the given batch sizes counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from depthdial.core.whole import write_json
from depthdial.engine.llm import LLM
from depthdial.evaluate.harness.data import DataFolder
from depthdial.evaluate.harness.lm import DepthLM
from depthdial.evaluate.harness.setting import Setting, TaskDials
from depthdial.evaluate.harness.tasks import load_suites
from depthdial.evaluate.speed.machine import facts
from depthdial.evaluate.store import Store
from depthdial.models import load, load_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--plugin", default="default", help="ours carries it, at budget 1.0")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="hellaswag")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--hf-batches", default="1,16", help="batch sizes of hf that are tried")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    suites = load_suites(args.tasks.split(","), DataFolder(args.data_dir, args.limit))
    model, tokenizer = load(args.model, args.plugin, 1.0)
    ours = DepthLM(LLM.of(model, tokenizer, max_batch=64))
    base, tokenizer = load_base(args.model)
    theirs = {
        f"hf, batch {size}": HFLM(pretrained=base, tokenizer=tokenizer, backend="causal", batch_size=size)  # pyright: ignore
        for size in map(int, args.hf_batches.split(","))
    }
    runs: dict[str, dict[str, list[float]]] = {}
    scores: dict[str, dict[str, Any]] = {}
    for _ in range(args.repeats):
        for suite in suites:
            for name, lm in {"depthdial": ours, **theirs}.items():
                ours.begin(Setting.alike(TaskDials()), Store())  # nothing is remembered
                began = time.perf_counter()
                told: Any = evaluate(
                    lm=lm,
                    task_dict={"tasks": suite.parts, "groups": {}, "group_map": {}},
                    limit=suite.limit(args.limit),  # pyright: ignore[reportArgumentType] - a whole number here
                    bootstrap_iters=0,
                )
                runs.setdefault(suite.name, {}).setdefault(name, []).append(round(time.perf_counter() - began, 3))
                found = next(iter(told["results"].values()))
                scores.setdefault(suite.name, {})[name] = {
                    k: v for k, v in found.items() if isinstance(v, float) and "stderr" not in k
                }
    for task, seconds in runs.items():
        best = {name: min(taken) for name, taken in seconds.items()}
        hf = min(value for name, value in best.items() if name != "depthdial")
        print(f"{task}: {best}, hf / depthdial {hf / best['depthdial']:.2f}")
        print("  " + json.dumps(scores[task]))
    if args.output is not None:
        told = {"what": "seconds of a task in lm-evaluation-harness, dense", **facts(model.device)}
        shown = {"tasks": args.tasks, "limit": args.limit, "repeats": args.repeats, "model": Path(args.model).name}
        medians = {task: {n: statistics.median(t) for n, t in seconds.items()} for task, seconds in runs.items()}
        write_json(args.output, {**told, "arguments": shown, "seconds": runs, "median": medians, "scores": scores})


if __name__ == "__main__":
    main()
