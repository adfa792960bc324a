"""Routers trained in a plain PyTorch loop: the paper's loss, the dial, and a plug-in at the end.

python examples/own_loop.py --model smollm2-135m-instruct --text my.txt --output my-plugin
depthdial generate "Once upon a time" --model smollm2-135m-instruct --plugin my-plugin --budget 0.9
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import depthdial
from depthdial.methods import FlexiDepth
from depthdial.models import load_base


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="short name, folder, or hub id")
    parser.add_argument("--text", type=Path, required=True, help="a file of plain text")
    parser.add_argument("--output", required=True, help="folder of the plug-in")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--alpha", type=float, default=1e-3, help="weight of the loss that makes the routers skip")
    options = parser.parse_args(args)

    # any Hugging Face causal LM of a known family does: AutoModelForCausalLM.from_pretrained(...), too
    model: Any
    model, tokenizer = load_base(options.model, "float32")
    method = FlexiDepth(weights="hard", gate_gradient="sampled", start=0.0, alpha=options.alpha)
    depthdial.convert(model, method)  # in place; the base's weights are frozen

    ids = tokenizer(options.text.read_text(), return_tensors="pt", verbose=False)["input_ids"][0]
    rows = ids[: len(ids) // options.length * options.length].view(-1, options.length).to(model.device)
    rows, held = rows[: -max(1, len(rows) // 10)], rows[-max(1, len(rows) // 10) :]

    trained = [weight for weight in model.parameters() if weight.requires_grad]  # routers and adapters
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    model.train()
    for step in range(options.steps):
        model.converted.set(progress=step / options.steps)  # routers explore less towards the end
        batch = rows[torch.randint(len(rows), (4,))]
        loss = model(batch, labels=batch).loss + depthdial.method_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}, cost {model.route.cost():.3f}")

    model.eval()
    curve = depthdial.calibrate(model, held.split(4))  # what each budget costs and loses: now there is a dial
    budget = (curve.floor + 1) / 2
    depthdial.set_budget(model, budget)
    print(f"budgets from {curve.floor:.3f} to 1.0; at {budget:.3f} the KL from the base is {curve.kl(budget):.4f} nats")
    depthdial.save(model, options.output)


if __name__ == "__main__":
    main()
