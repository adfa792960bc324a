"""The speed of the peer TIDE (PyPI, tide-inference 0.2.1), batch 1.

    pip install --no-deps --no-build-isolation tide-inference==0.2.1     (where torch, transformers and pyyaml are)
    depthdial bench --peers tide --peer-python tide=THAT_PYTHON

Read in its source: `generate` runs every layer for every token and picks afterwards from which layer's hidden state the
logits come, so that there is nothing to gain at any exit rate. Its routers are drawn at random here, one every fourth
layer as by its default, with a threshold that none reaches: its cost is that of its own loop.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import importlib.metadata
import time

import torch
from driver import Answer, Run, arguments, serve
from TIDE import TIDE
from TIDE.config import TIDEConfig
from TIDE.router import RouterCheckpoint, TokenRouter
from transformers import AutoModelForCausalLM


def start(args: argparse.Namespace) -> tuple[Answer, Run]:
    torch.set_num_threads(args.threads)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    hidden, layers, config = base.config.hidden_size, base.config.num_hidden_layers, TIDEConfig(exit_threshold=1.0)
    every = range(config.checkpoint_interval - 1, layers - 1, config.checkpoint_interval)
    routers = {layer: TokenRouter(hidden, config.router_bottleneck_dim).to(base.dtype) for layer in every}
    path = args.model.with_name(f"{args.model.name}-tide.pt")
    RouterCheckpoint(routers, hidden, config.router_bottleneck_dim).save(path)
    engine = TIDE(base, str(path), config=config)

    @torch.no_grad()
    def run(prompts: list[list[int]], new_tokens: int) -> Answer:
        if len(prompts) != 1:
            raise ValueError("measured with one text at a time")
        stamps, tokens = [], []
        for count in dict.fromkeys((1, new_tokens)):
            begun = time.perf_counter()
            out = engine.generate(torch.tensor(prompts), max_new_tokens=count, temperature=0.0)
            stamps.append(time.perf_counter() - begun)
            tokens = out[:, len(prompts[0]) :].tolist()
        if len(tokens[0]) < new_tokens:
            raise ValueError("the text ended early: TIDE takes token 2 for its end")
        return {"first": stamps[0], "rest": stamps[-1] - stamps[0], "tokens": tokens}

    return {"versions": {"tide-inference": importlib.metadata.version("tide-inference")}}, run


if __name__ == "__main__":
    parsed = arguments(__doc__, ("bf16",)).parse_args()
    serve(lambda: start(parsed))
