"""The loop: Hugging Face's Trainer, unchanged, with callbacks for what is ours.

What is trained brings its own loss; callbacks hold the budget after each optimizer step, show progress, and turn an
interruption into a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from depthdial.models.gguf import quiet
from depthdial.train import processes
from depthdial.train.callbacks import Report, Seal, StopCleanly
from depthdial.train.checkpoints import step_of, sweep, to_resume
from depthdial.train.config import TrainConfig
from depthdial.train.lesson import Lesson
from depthdial.train.machine import one_device
from depthdial.train.mix import single
from depthdial.train.optimizers import optimizer_for
from depthdial.train.pretrain_config import PretrainConfig
from depthdial.train.settings import CHECKPOINTS
from depthdial.train.sharding import shard_on_cpu


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
    """Train the lesson's parts in place on micro-batches as `Mix` orders them. more: further callbacks, called first.
    Raises as `train_in_place`."""
    train_in_place(
        lesson,
        rows,
        config,
        resume,
        [*more, HoldBudget(lesson), Report(lesson, Path(config.output))],
        single,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=processes.parts(config.batch, config.accumulate)[1],
        lr_scheduler_type="cosine",
        use_cpu=next(lesson.parameters()).device.type == "cpu",
    )


def train_in_place(
    module: nn.Module,
    rows: Dataset,
    config: TrainConfig | PretrainConfig,
    resume: bool,
    callbacks: Sequence[TrainerCallback],
    collate: Callable[[list[Any]], Any],
    loss: Callable[..., Any] | None = None,
    **arguments: Any,
) -> Trainer | None:
    """Train a module on rows in their own order; None if a checkpoint of the last step is there already, which is then
    loaded. Checkpoints go to `<output>/checkpoints`; `resume` goes on from the last whole one. arguments: further
    `TrainingArguments`.

    Raises InterruptedRun after a signal, ValueError for a loss that is not a number or nothing to resume from.
    """
    folder = Path(config.output) / CHECKPOINTS
    checkpoint = to_resume(folder, resume)
    if checkpoint is not None and step_of(checkpoint) >= config.steps:  # only what comes after training was cut off
        state = load_file(checkpoint / SAFE_WEIGHTS_NAME)
        module.load_state_dict(state, strict=isinstance(module, Lesson))  # of tied weights a model's file has one
        return None
    stop = StopCleanly()
    shared = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        train_sampling_strategy="sequential",  # the rows have an order of their own
        learning_rate=config.lr,
        warmup_steps=math.ceil(config.warmup * config.steps),
        max_grad_norm=config.clip,
        seed=config.seed,
        data_seed=config.seed,
        save_steps=config.save_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        ddp_broadcast_buffers=False,  # the budget control's sums differ until they are added up
        **arguments,
    )
    trainer = Trainer(
        model=module,
        args=one_device(shared),
        train_dataset=rows,
        data_collator=collate,
        compute_loss_func=loss,
        callbacks=[*callbacks, Seal(), stop],
        optimizers=(optimizer_for(module, config), None),
    )
    shard_on_cpu(trainer)
    trainer.remove_callback(PrinterCallback)  # stdout belongs to whoever asked for --json
    try:
        with quiet():  # a bar for each checkpoint
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        stop.put_back()
        if processes.is_main():
            sweep(folder)
    stop.check(trainer.state.global_step, config.steps, folder)
    return trainer
