"""Skipped layers as time on a GPU: decode at batch 1 and 256 and a prefill of 4096 tokens, on an 8B-shaped model.

    python benchmarks/gpu.py --output benchmarks/results/DATE-h200.json

Weights are random bf16; routers of the upper half of the layers are set so that half of their tokens skip, a quarter of
all. Each case runs Hugging Face (compiled, static cache), our dense pass and the adaptive one in turns, and prints
medians beside the limit: counted bytes over the bandwidth measured in this run, or counted operations over the measured
rate of a matrix product, whichever is larger. A speed-up is judged by the route that was really taken.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache

from depthdial import __version__
from depthdial.core.whole import write_json
from depthdial.engine.model_tensors import tensors_of
from depthdial.engine.runner import TorchRunner
from depthdial.engine.stats import Stats
from depthdial.kernels.tensors import ModelTensors
from depthdial.methods import method_named
from depthdial.models.block import spine_of
from depthdial.models.convert import convert
from gpu_cases import Case, Limits, decode_case, prefill_case


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    args = _parser().parse_args(arguments)
    device = torch.device(args.device)
    with torch.no_grad():
        plain = base(args, device)
        limits = measured_limits(device, args.probe)
        model = adaptive(plain, args)
        results: dict[str, Any] = {"facts": facts(args, device), "limits": limits._asdict(), "cases": []}
        for batch in args.batches:
            case = decode_case(model, batch, args.context, device)
            variants = {"hugging face": hugging_face(plain, args, device, batch, 1), **case.variants}
            results["cases"].append(told(case, timed(variants, device, args.repeats, args.warm_ups), limits))
            print(table(results["cases"][-1:]), flush=True)
            _save(results, args.output)
        case = prefill_case(model, args.prompt, device)
        variants = {"hugging face": hugging_face(plain, args, device, 1, args.prompt), **case.variants}
        results["cases"].append(told(case, timed(variants, device, args.repeats, args.warm_ups), limits))
        print(table(results["cases"][-1:]), flush=True)
    _save(results, args.output)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 4096), ("intermediate", 14336), ("layers", 32), ("heads", 32), ("kv-heads", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--batches", type=lambda s: [int(n) for n in s.split(",")], default=[1, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens before the one that is decoded")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prefill")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.25, help="share of all layers that tokens skip, up to 0.5")
    parser.add_argument("--probe", type=int, default=8192, help="side of the matrices that limits are measured with")
    parser.add_argument("--calibration", type=int, default=256, help="tokens that routers are set by")
    parser.add_argument("--rounds", type=int, default=3, help="of setting the routers")
    parser.add_argument("--warm-ups", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="run Hugging Face eagerly")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path)
    return parser


def base(args: argparse.Namespace, device: torch.device) -> PreTrainedModel:
    """A Llama of the asked sizes with random bf16 weights."""
    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        vocab_size=args.vocabulary,
        max_position_embeddings=max(args.context, args.prompt) + 64,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def adaptive(plain: PreTrainedModel, args: argparse.Namespace) -> ModelTensors:
    """The same weights with FlexiDepth on the upper half, its routers set by their own logits on random tokens."""
    shared = {id(tensor): tensor for tensor in (*plain.parameters(), *plain.buffers())}
    model: Any = copy.deepcopy(plain, shared)
    device = plain.device
    model = convert(model, method_named("flexidepth", {"start": 0.0}))
    torch.nn.Module.to(model, device)  # the new parts
    spine = spine_of(model)
    runner = TorchRunner(model, spine, Stats(len(spine.layers)))
    share = min(1.0, args.rate * len(spine.layers) / (len(spine.layers) - len(spine.layers) // 2))
    tensors = tensors_of(spine, runner).tensors
    for _ in range(args.rounds):  # a router's input depends on what the layers below it decided
        score = decode_case(tensors, args.calibration, 1, device).first.score
        logits = torch.logit(score.clamp(1e-6, 1 - 1e-6))
        layers = []
        for layer, logit in zip(tensors.layers, logits, strict=True):
            router = layer.branch.router
            if router is not None:
                cut = float(torch.quantile(logit, share))
                layer = layer._replace(branch=layer.branch._replace(router=router._replace(cut=cut)))
            layers.append(layer)
        tensors = tensors._replace(layers=tuple(layers))
    return tensors


def hugging_face(
    plain: PreTrainedModel, args: argparse.Namespace, device: torch.device, batch: int, tokens: int
) -> Callable[[], None]:
    """A pass of the base over a static cache: `tokens` of each row, after the context where it is one."""
    context = args.context if tokens == 1 else 0
    ids = torch.randint(args.vocabulary, (batch, tokens), device=device)
    positions = torch.arange(context, context + tokens, device=device)[None].expand(batch, -1)
    cache = StaticCache(config=plain.config, max_cache_len=context + max(tokens, args.repeats + 16))
    if context:
        prompt = torch.randint(args.vocabulary, (batch, context), device=device)
        plain(prompt, past_key_values=cache, logits_to_keep=1)
    step: Any = plain.forward
    if not args.no_compile:
        step = torch.compile(step, mode="reduce-overhead", fullgraph=True)

    def run() -> None:
        if tokens > 1:
            cache.reset()
        step(input_ids=ids, position_ids=positions, past_key_values=cache, logits_to_keep=1)

    return run


def timed(
    variants: dict[str, Callable[[], None]], device: torch.device, repeats: int, warm_ups: int = 3
) -> dict[str, float]:
    """Median seconds of each, run in turns after the warm-ups."""
    for run in variants.values():
        for _ in range(warm_ups):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            seconds[name].append(_once(run, device))
    return {name: median(times) for name, times in seconds.items()}


def _once(run: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def measured_limits(device: torch.device, side: int) -> Limits:
    """Bytes per second read (or copied, whichever is faster) and operations per second of a bf16 product."""
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    long = torch.randn(16 * side * side, device=device)
    into = torch.empty_like(long)
    runs = {
        "product": lambda: a @ b,
        "read": lambda: long.sum(),
        "copy": lambda: into.copy_(long),
    }
    seconds = timed(runs, device, 10)  # type: ignore[arg-type]
    size = long.numel() * long.element_size()
    return Limits(max(size / seconds["read"], 2 * size / seconds["copy"]), 2 * side**3 / seconds["product"])


def told(case: Case, seconds: dict[str, float], limits: Limits) -> dict[str, Any]:
    """One case as it is saved: what was measured, and how it stands to its limits."""
    dense, routed = limits.least(case.dense), limits.least(case.routed)
    speedup, ideal = seconds["dense"] / seconds["adaptive"], dense / routed
    return {
        "name": case.name,
        "tokens": case.tokens,
        "seconds": seconds,
        "layers_run": case.layers_run,
        "work": {"dense": case.dense._asdict(), "adaptive": case.routed._asdict()},
        "limit_seconds": {"dense": dense, "adaptive": routed},
        "speedup": speedup,
        "ideal_speedup": ideal,
        "share_of_ideal": speedup / ideal,
        "dense_over_hugging_face": seconds["hugging face"] / seconds["dense"],
    }


def table(cases: list[dict[str, Any]]) -> str:
    """One block of lines for each case."""
    lines = []
    for case in cases:
        lines.append(f"{case['name']}: {case['layers_run']:.1%} of layers run by the adaptive pass")
        for name, seconds in case["seconds"].items():
            limit = case["limit_seconds"]["adaptive" if name == "adaptive" else "dense"]
            rate = case["tokens"] / seconds
            lines.append(f"  {name:13} {seconds * 1e3:9.3f} ms {rate:11.1f} tok/s {limit / seconds:7.1%} of its limit")
        lines.append(
            f"  speed-up {case['speedup']:.3f}, ideal {case['ideal_speedup']:.3f}: {case['share_of_ideal']:.1%} of it; "
            f"dense {case['dense_over_hugging_face']:.2f} x Hugging Face"
        )
    return "\n".join(lines)


def facts(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    import triton

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu (interpreted)",
        "versions": {
            "depthdial": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "triton": triton.__version__,
        },
        "arguments": {name: value for name, value in vars(args).items() if name not in ("output", "device")},
    }


def _save(results: dict[str, Any], output: Path | None) -> None:
    if output is not None:
        write_json(output, results)


if __name__ == "__main__":
    main()
