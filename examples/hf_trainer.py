"""Routers trained by Hugging Face's Trainer: one method of it is overridden.

python examples/hf_trainer.py --model smollm2-135m-instruct --text my.txt --output my-plugin
depthdial generate "Once upon a time" --model smollm2-135m-instruct --plugin my-plugin --budget 0.9
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, default_data_collator

import depthdial
from depthdial.methods import FlexiDepth
from depthdial.models import load_base


class RouterTrainer(Trainer):
    """Adds the method's own loss to the task's."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        result: Any = super().compute_loss(model, inputs, return_outputs, **kwargs)
        extra = depthdial.method_loss(model) / self.current_gradient_accumulation_steps if model.training else 0.0
        return (result[0] + extra, result[1]) if return_outputs else result + extra


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="short name, folder, or hub id")
    parser.add_argument("--text", type=Path, required=True, help="a file of plain text")
    parser.add_argument("--output", required=True, help="folder of the plug-in")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--alpha", type=float, default=1e-3, help="weight of the loss that makes the routers skip")
    options = parser.parse_args(args)

    model: Any
    model, tokenizer = load_base(options.model, "float32")
    method = FlexiDepth(weights="hard", gate_gradient="sampled", start=0.0, alpha=options.alpha)
    depthdial.convert(model, method)

    ids = tokenizer(options.text.read_text(), verbose=False)["input_ids"]
    texts = [ids[start : start + options.length] for start in range(0, len(ids) - options.length + 1, options.length)]
    rows: Any = [{"input_ids": row, "labels": row} for row in texts]
    rows, held = rows[: -max(1, len(rows) // 10)], rows[-max(1, len(rows) // 10) :]

    with tempfile.TemporaryDirectory() as scratch:  # checkpoints would go there; the plug-in is saved below
        arguments = TrainingArguments(
            scratch,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = RouterTrainer(model, arguments, train_dataset=rows, data_collator=default_data_collator)
        trainer.train()

    curve = depthdial.calibrate(model, [default_data_collator(held)])
    print(f"budgets from {curve.floor:.3f} to 1.0; recommended: {model.converted.plugin.recommended}")
    depthdial.save(model, options.output)


if __name__ == "__main__":
    main()
