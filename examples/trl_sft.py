"""Routers trained by trl's SFTTrainer on conversations; `pip install trl`.

    python examples/trl_sft.py --model smollm2-135m-instruct --data chats.jsonl --output my-plugin
    depthdial chat --model smollm2-135m-instruct --plugin my-plugin --budget 0.9

chats.jsonl: one object a line in one of trl's forms, {"messages": [...]} or {"prompt": [...], "completion": [...]}.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from trl import SFTConfig, SFTTrainer  # pyright: ignore - an example's own library, which exports lazily

import depthdial
from depthdial.methods import FlexiDepth
from depthdial.models import load_base


class RouterTrainer(SFTTrainer):
    """Adds the method's own loss to the task's."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        result: Any = super().compute_loss(model, inputs, return_outputs, **kwargs)
        extra = depthdial.method_loss(model) / self.current_gradient_accumulation_steps if model.training else 0.0
        return (result[0] + extra, result[1]) if return_outputs else result + extra


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="short name, folder, or hub id")
    parser.add_argument("--data", required=True, help="a .jsonl file of conversations")
    parser.add_argument("--output", required=True, help="folder of the plug-in")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=512, help="most tokens of a conversation")
    parser.add_argument("--alpha", type=float, default=1e-3, help="weight of the loss that makes the routers skip")
    options = parser.parse_args(args)

    model: Any
    model, tokenizer = load_base(options.model, "float32")
    method = FlexiDepth(weights="hard", gate_gradient="sampled", start=0.0, alpha=options.alpha)
    depthdial.convert(model, method)
    split = datasets.Dataset.from_json(options.data).train_test_split(0.1, seed=0)

    with tempfile.TemporaryDirectory() as scratch:  # checkpoints would go there; the plug-in is saved below
        arguments = SFTConfig(
            scratch,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            max_length=options.length,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            loss_type="nll",
            bf16=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = RouterTrainer(
            model, arguments, train_dataset=split["train"], eval_dataset=split["test"], processing_class=tokenizer
        )
        trainer.train()
        curve = depthdial.calibrate(model, trainer.get_eval_dataloader())

    print(f"budgets from {curve.floor:.3f} to 1.0; recommended: {model.converted.plugin.recommended}")
    depthdial.save(model, options.output)


if __name__ == "__main__":
    main()
