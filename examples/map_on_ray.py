"""Map a large set of prompts on a Ray cluster, one model to a GPU (or to a core).

    pip install 'ray[data]'
    python examples/map_on_ray.py prompts.jsonl OUTPUT [--model M] [--plugin P] [--budget 0.85] [--prompt-budget same]
        [--workers 8] [--gpus 1]

Ray reads and writes on cores that no worker has: leave it one, or give each worker half a one (--cores 0.5).

The rows are those of `depthdial map --prompts`; the output is a folder of Parquet files with the same columns, which
`datasets.load_dataset("parquet", data_files="OUTPUT/*.parquet")` reads.

Without Ray, any scheduler that numbers its jobs can do the same with shards, into one folder:

    depthdial map --prompts prompts.jsonl --output OUTPUT --shard $((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT
"""

from __future__ import annotations

import argparse
import hashlib
import json
from typing import Any

import pyarrow as pa

from depthdial import load
from depthdial.cli.options import prompt_budget_of
from depthdial.core.dial import PromptBudget
from depthdial.maps.mapping import Mapper, MapSettings
from depthdial.maps.prompts import of_row
from depthdial.maps.schema import DepthMap, arrow_table


class MapTexts:
    """Holds the model of one worker; called with one block of rows after the other."""

    def __init__(
        self,
        model: str,
        plugin: str | None,
        budget: float | None,
        prompt_budget: PromptBudget | None = None,
        device: str = "auto",
        **settings: Any,
    ):
        loaded, tokenizer = load(model, plugin, budget, device=device)
        self.mapper = Mapper(loaded, tokenizer, model, budget, MapSettings(**settings), prompt_budget)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Rows with `prompt` or `messages` (and `id`, `task`, `group`, `answer`) to rows of a map."""
        # rows without an id are named by what they hold: their number in a block would come again in the next
        prompts = [of_row(row, f"row {i}", f"row-{_hash(row)}", "text") for i, row in enumerate(block.to_pylist())]
        return arrow_table(DepthMap(self.mapper.recorder.facts, self.mapper.rows(prompts)))


def _hash(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:12]


def main() -> None:
    import ray.data  # pyright: ignore[reportMissingImports] - asked for by this example alone

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts")
    parser.add_argument("output")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--plugin", default="default")
    parser.add_argument("--budget", type=float, help="true cost of what is written")
    parser.add_argument("--prompt-budget", type=prompt_budget_of, help="of what is read: a number, or same [1.0]")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cores", type=float, default=1, help="of one worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of one worker")
    parser.add_argument("--batch", type=int, default=128, help="texts of one block")
    args = parser.parse_args()
    ray.data.read_json(args.prompts, lines=True).map_batches(
        MapTexts,
        fn_constructor_args=(args.model, args.plugin, args.budget, args.prompt_budget),
        batch_format="pyarrow",
        batch_size=args.batch,
        concurrency=args.workers,
        num_cpus=args.cores,
        num_gpus=args.gpus,
    ).write_parquet(args.output)


if __name__ == "__main__":
    main()
