"""The loop: Hugging Face's Trainer, unchanged, with callbacks for what is ours.

The lesson brings its own loss; callbacks hold the budget after each optimizer step, show progress, and turn an
interruption into a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from depthdial.train import processes
from depthdial.train.callbacks import Report, Seal, StopCleanly
from depthdial.train.checkpoints import step_of, sweep, to_resume
from depthdial.train.config import TrainConfig
from depthdial.train.lesson import Lesson
from depthdial.train.machine import one_device
from depthdial.train.mix import single
from depthdial.train.optimizers import deciding
from depthdial.train.settings import CHECKPOINTS


class HoldBudget(TrainerCallback):
    """Move the budget control once per optimizer step, and tell the lesson how far training is."""

    def __init__(self, lesson: Lesson):
        self.lesson = lesson

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lesson.progress = state.global_step / max(state.max_steps, 1)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lesson.hold()


def run_trainer(
    lesson: Lesson, rows: Dataset, config: TrainConfig, resume: bool, more: Sequence[TrainerCallback] = ()
) -> None:
    """Train the lesson's parts in place on micro-batches as `Mix` orders them. Checkpoints go to
    `<output>/checkpoints`; `resume` goes on from the last whole one. more: further callbacks, called first.

    Raises InterruptedRun after a signal, ValueError for a loss that is not a number or nothing to resume from.
    """
    output = Path(config.output)
    folder = output / CHECKPOINTS
    checkpoint = to_resume(folder, resume)
    if checkpoint is not None and step_of(checkpoint) >= config.steps:  # only what comes after training was cut off
        lesson.load_state_dict(load_file(checkpoint / SAFE_WEIGHTS_NAME))
        return
    stop = StopCleanly()
    _, accumulate = processes.parts(config.batch, config.accumulate)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",  # the mix has an order of its own
        gradient_accumulation_steps=accumulate,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(config.warmup * config.steps),
        max_grad_norm=config.clip,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=next(lesson.parameters()).device.type == "cpu",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        ddp_broadcast_buffers=False,  # the budget control's sums differ until they are added up
    )
    trainer = Trainer(
        model=lesson,
        args=one_device(arguments),
        train_dataset=rows,
        data_collator=single,
        callbacks=[*more, HoldBudget(lesson), Report(lesson, output), Seal(), stop],
        optimizers=(optimizer_for(lesson, config), None),
    )
    trainer.remove_callback(PrinterCallback)  # stdout belongs to whoever asked for --json
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        stop.put_back()
        if processes.is_main():
            sweep(folder)
    stop.check(trainer.state.global_step, config.steps, folder)


def optimizer_for(lesson: Lesson, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; routers may learn at another rate, and no gate's bias decays."""
    routers = {id(p) for p in deciding(lesson)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (p for p in lesson.parameters() if p.requires_grad):
        rate = config.lr * (config.router_lr if id(parameter) in routers else 1.0)
        groups.setdefault((rate, config.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()], betas=config.betas
    )
