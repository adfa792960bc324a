"""The vLLM plug-in on a model of a billion parameters, beside dense vLLM on the same base: random weights, real time.

    make test-vllm
    python benchmarks/vllm_large.py FOLDER benchmarks/results/DATE-MACHINE-vllm-large.json --vllm .venv-vllm/bin/python

FOLDER gets both models (4.5 GB), which are kept for another run. Dense vLLM is compiled, as it comes. Routers are
random, so that about half of the tokens skip a routed layer; what they skipped is counted by the dense reference on the
very tokens that were generated. The two take turns; ratios are medians over turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from depthdial.core.whole import write_json
from depthdial.evaluate.speed.machine import facts
from depthdial.evaluate.speed.peers import PEERS, PeerSubject, drivers
from depthdial.methods import FlexiDepth
from depthdial.models import convert, load_base
from depthdial.models.converted import converted_of
from depthdial.models.export import export

NEW = 32
WARM = 3
"""Turns before the clock counts: kernels are made for each number of rows that comes."""


def make(folder: Path, layers: int, routed: int, width: int) -> None:
    """Base and routed model, each once."""
    if (folder / "routed" / "config.json").is_file():
        return
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 256,
        head_dim=64,
        vocab_size=32_000,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    with torch.device("meta"):
        base = LlamaForCausalLM(config)
    base = base.bfloat16().to_empty(device="cpu")
    base.tie_weights()
    with torch.no_grad():
        for name, weight in base.named_parameters():
            weight.fill_(1) if name.endswith("norm.weight") else weight.normal_(std=0.02)
    base.model.rotary_emb = type(base.model.rotary_emb)(config)
    base.save_pretrained(folder / "base")
    model = convert(base, FlexiDepth(first=layers - routed, weights="hard", start=0.0)).bfloat16()
    _, tokenizer = load_base("smollm2-135m-instruct")
    export(model, tokenizer, folder / "routed")


def prompts(batch: int, seed: int) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randint(3, 32_000, (batch, 32), generator=numbers).tolist()


def cost(model: Any, texts: list[list[int]], answers: list[list[int]]) -> float:
    """Mean true cost of the passes that generated the answers, by the reference."""
    with torch.no_grad():
        model(torch.tensor([text + answer for text, answer in zip(texts, answers, strict=True)]), use_cache=False)
    return float(converted_of(model).route.token_cost()[:, len(texts[0]) - 1 : -1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vllm", required=True, help="the Python that vLLM is installed in")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--routed", type=int, default=12)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    folder = args.folder / f"{args.layers}x{args.width}-{args.routed}"
    make(folder, args.layers, args.routed, args.width)
    script, threads = drivers() / PEERS["vllm"].driver, torch.get_num_threads()
    pair = [
        PeerSubject(PEERS["vllm"], "bf16", args.vllm, script, folder / name, threads) for name in ("base", "routed")
    ]
    rows, told = [], {}
    try:
        for batch in args.batches:
            seconds: list[tuple[float, ...]] = []
            for repeat in range(1 - WARM, args.repeats + 1):
                runs = [one.run(prompts(batch, repeat + WARM), NEW) for one in pair]
                if repeat > 0:
                    seconds.append(tuple(run.rest for run in runs))
            told[batch] = pair[1].answers
            speeds = [median(batch * (NEW - 1) / each[i] for each in seconds) for i in (0, 1)]
            row = {"batch": batch, "dense": speeds[0], "routed": speeds[1], "ratio": median(a / b for a, b in seconds)}
            rows.append({**row, "seconds": seconds})
            print(f"batch {batch}: dense {speeds[0]:.1f} tokens/s, routed {speeds[1]:.1f}, ratio {row['ratio']:.2f}")
    finally:
        for one in pair:
            one.close()
    model = AutoModelForCausalLM.from_pretrained(folder / "routed", dtype=torch.bfloat16)
    for row in rows:
        row["true cost"] = cost(model, prompts(row["batch"], args.repeats + WARM), told[row["batch"]])
        print(f"batch {row['batch']}: true cost {row['true cost']:.3f}")
    about = {"layers": args.layers, "routed": args.routed, "width": args.width, "vllm": dict(pair[0].about)}
    parameters = sum(weight.numel() for weight in model.parameters())
    result = {"what": "vLLM, dense and with the plug-in", **facts(torch.device("cpu")), "model": about}
    write_json(args.output, {**result, "parameters": parameters, "new tokens": NEW, "rows": rows})


if __name__ == "__main__":
    main()
