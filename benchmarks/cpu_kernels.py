"""How fast the native CPU kernels are, against the machine's read bandwidth and against F.linear.

    python benchmarks/cpu_kernels.py --json kernels.json

One table for the matrices of the model (GB/s, batch 1), one for whole passes: dense, and with every k-th layer skipped.
Everything is interleaved and medians are shown, since a shared machine's bandwidth moves from one second to the next:
the limit is measured beside each figure.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdial.core.whole import write_json
from depthdial.kernels.cpu.native import Counters, NativeModel
from depthdial.kernels.pack import packed
from depthdial.kernels.passing import PagedCache, PassOutput, PassTokens
from depthdial.kernels.tensors import PAGE, Branch, LayerTensors, Linear, ModelTensors, Norm, Rope
from depthdial.models import load_base
from depthdial.models.block import spine_of

MATRICES = ("k", "q", "o", "gate", "down")
Run = Callable[[], Any]


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    model, _ = load_base(args.model, "bfloat16")
    tensors = tensors_of(model)
    forms = {"bf16": tensors, "int8": packed(tensors)}
    natives = {name: NativeModel(form, isa=args.isa) for name, form in forms.items()}
    buffer = torch.ones(50_000_000, dtype=torch.int64)  # 400 MB: larger than any cache
    results: dict[str, Any] = {"machine": facts(args, natives["bf16"].isa), "matrices": [], "passes": []}
    print(f"{'matrix':24}{'limit':>8}{'bf16':>8}{'int8':>8}{'F.linear bf16':>15}   GB/s")
    for name in (*MATRICES, "head"):
        row = one_matrix(name, tensors, natives["bf16"], buffer, args)
        results["matrices"].append(row)
        print(f"{row['matrix']:24}" + "".join(f"{row[key]:{w}.1f}" for key, w in COLUMNS), flush=True)
    heads = ("tokens/s", "GB/s", "of limit", "skipping", "speed-up", "ideal", "share")
    print(f"\n{'pass':22}" + "".join(f"{head:>10}" for head in heads))
    for weights, native in natives.items():
        for tokens in args.tokens:
            row = whole_pass(weights, native, tensors, buffer, tokens, args)
            results["passes"].append(row)
            shown = ("tokens_per_second", "gb_per_second", "of_limit", "skipped", "speed_up", "ideal", "share")
            print(f"{weights + ' x ' + str(tokens):22}" + "".join(f"{row[key]:10.3f}" for key in shown), flush=True)
    if args.json:
        write_json(args.json, results)


COLUMNS = (("limit", 8), ("bf16", 8), ("int8", 8), ("torch", 15))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How fast the native CPU kernels are.")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--isa", help="instruction set; the best of this machine by default")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16], help="tokens of a pass")
    parser.add_argument("--position", type=int, default=128, help="of every token in its sequence")
    parser.add_argument("--every", type=int, default=5, help="every so many layers, one is skipped")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="where to write the results")
    return parser.parse_args()


def facts(args: argparse.Namespace, isa: str) -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "isa": isa,
        "torch": torch.__version__,
        "model": args.model,
        "position": args.position,
    }


def one_matrix(
    name: str, model: ModelTensors, reader: NativeModel, buffer: Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    """GB/s of one kind of matrix over all layers: stacked as the head of a model that is nothing else."""
    found = [model.head] if name == "head" else [getattr(layer, name).weight for layer in model.layers]
    weights: list[Tensor] = [weight for weight in found if isinstance(weight, Tensor)]
    stacked = torch.cat(weights).detach()
    x = torch.randn(1, stacked.shape[1]).to(stacked.dtype)
    only = head_only(stacked)
    runs: dict[str, Run] = {"limit": lambda: reader.read(buffer)}
    for form, tensors in (("bf16", only), ("int8", packed(only))):
        runs[form] = pass_of(NativeModel(tensors, isa=args.isa), tensors, 1, 0, None)
    runs["torch"] = lambda: [F.linear(x, weight) for weight in weights]
    took, last = interleaved(runs, args.repeats)
    size = {"limit": last["limit"], "torch": stacked.numel() * stacked.element_size()}
    size |= {form: last[form].weight_bytes for form in ("bf16", "int8")}
    row: dict[str, Any] = {key: size[key] / took[key] / 1e9 for key in took}
    return {"matrix": f"{name} {len(weights)} x {tuple(weights[0].shape)}", **row}


def head_only(head: Tensor) -> ModelTensors:
    dim, dtype = head.shape[1], head.dtype
    none = torch.zeros(16, dim, dtype=dtype)
    back, norm = Linear(none.T.contiguous()), Norm(torch.ones(dim, dtype=dtype), 1e-6)
    side = Linear(none)
    layer = LayerTensors(norm, side, side, side, back, norm, side, side, back, 1, 1, 16, 1.0, "rope")
    return ModelTensors(torch.randn(4, dim).to(dtype), (layer,), norm, head, {"rope": Rope(torch.ones(8))})


def whole_pass(
    weights: str, native: NativeModel, model: ModelTensors, buffer: Tensor, tokens: int, args: argparse.Namespace
) -> dict[str, Any]:
    keep = torch.ones(len(model.layers), tokens, dtype=torch.uint8)
    keep[args.every - 1 :: args.every] = 0
    runs: dict[str, Run] = {
        "limit": lambda: native.read(buffer),
        "dense": pass_of(native, model, tokens, args.position, None),
        "skipping": pass_of(native, model, tokens, args.position, keep),
    }
    took, last = interleaved(runs, args.repeats)
    moved = {name: count.weight_bytes + count.kv_bytes for name, count in last.items() if isinstance(count, Counters)}
    limit = last["limit"] / took["limit"]
    return {
        "weights": weights,
        "tokens": tokens,
        "tokens_per_second": tokens / took["dense"],
        "gb_per_second": moved["dense"] / took["dense"] / 1e9,
        "limit_gb_per_second": limit / 1e9,
        "of_limit": moved["dense"] / took["dense"] / limit,
        "skipped": 1 - keep.float().mean().item(),
        "speed_up": took["dense"] / took["skipping"],
        "ideal": moved["dense"] / moved["skipping"],
        "share": took["dense"] / took["skipping"] / (moved["dense"] / moved["skipping"]),
    }


def pass_of(native: NativeModel, model: ModelTensors, tokens: int, position: int, given: Tensor | None) -> Run:
    """A pass of `tokens` sequences at one position, to argmax; what it works on is made here, once."""
    layer, depth, pages = model.layers[0], len(model.layers), position // PAGE + 1
    shape = (depth * tokens * pages, layer.kv_heads, PAGE, layer.head_dim)
    k, v = (torch.zeros(shape, dtype=model.norm.weight.dtype) for _ in range(2))
    cache = PagedCache(k, v, torch.arange(depth * tokens * pages).view(depth, tokens, pages).int())
    positions, sequences = torch.full((tokens,), position).int(), torch.arange(tokens).int()
    inputs = PassTokens(torch.arange(tokens) % 4, positions, sequences, torch.zeros(tokens), given)
    keep, score = torch.empty(depth, tokens, dtype=torch.uint8), torch.empty(depth, tokens)
    out = PassOutput(keep, score, argmax=torch.empty(tokens, dtype=torch.int64))
    return lambda: native.forward(inputs, cache, out)


def interleaved(runs: dict[str, Run], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The median time of each, in seconds, and what each returned last."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    last = {name: run() for name, run in runs.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            last[name] = run()
            took[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in took.items()}, last


def tensors_of(model: Any) -> ModelTensors:
    spine = spine_of(model)
    return spine._replace(layers=tuple(layer._replace(branch=Branch("table")) for layer in spine.layers))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
