"""The speed of the peer economize (PyPI, 0.3.2) with its `flexidepth` technique, batch 1.

    pip install --no-deps --target PEER economize==0.3.2     (in an environment that has torch and transformers)
    PYTHONPATH=PEER depthdial bench --peers economize --peer-python economize=THAT_PYTHON

Every second of its flexible layers (the upper half of the model, its default) always skips and the others always run:
a share of skips that no training has to find, and the most favourable case, since its gather never splits a batch.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import importlib.metadata
import time

import torch
from driver import Answer, Run, arguments, serve
from economize import apply
from economize.techniques.dynamic_depth import FlexiDepthConfig
from transformers import AutoModelForCausalLM

SURE = 200.0
"""A gate's bias at which its score is exactly 0 or 1."""


def start(args: argparse.Namespace) -> tuple[Answer, Run]:
    torch.set_num_threads(args.threads)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    base.generation_config.eos_token_id = None
    base.generation_config.pad_token_id = 0
    model = apply(base, FlexiDepthConfig(router_bias=SURE)).eval()
    routers = model.techniques["flexidepth"].routers
    skipped = sorted(routers, key=int)[::2]
    for name in skipped:
        torch.nn.init.constant_(routers[name].head.bias, -SURE)

    @torch.no_grad()
    def run(prompts: list[list[int]], new_tokens: int) -> Answer:
        if len(prompts) != 1:
            raise ValueError("measured with one text at a time")
        ids = torch.tensor(prompts)
        stamps = []
        for count in dict.fromkeys((1, new_tokens)):
            begun = time.perf_counter()
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
            stamps.append(time.perf_counter() - begun)
        return {"first": stamps[0], "rest": stamps[-1] - stamps[0], "tokens": out[:, len(prompts[0]) :].tolist()}

    about = {
        "versions": {"economize": importlib.metadata.version("economize"), "torch": torch.__version__},
        "layers_skipped": f"{len(skipped)} of {base.config.num_hidden_layers}",
    }
    return about, run


if __name__ == "__main__":
    parsed = arguments(__doc__, ("bf16",)).parse_args()
    serve(lambda: start(parsed))
