"""The loop: Hugging Face's Trainer, unchanged, with callbacks for what is ours.

The lesson brings its own loss; callbacks hold the budget after each optimizer step, show progress, and turn an
interruption into a checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.utils import SAFE_WEIGHTS_NAME

from depthdial.core.layers import Router
from depthdial.train.config import TrainConfig
from depthdial.train.lesson import Lesson
from depthdial.train.progress import Progress

STATE_FILE = "trainer_state.json"  # the last file that the Trainer writes into a checkpoint


class Interrupted(ValueError):
    """Training was stopped from outside, after a checkpoint."""


class Hold(TrainerCallback):
    """Move the budget control once per optimizer step, and tell the lesson how far training is."""

    def __init__(self, lesson: Lesson):
        self.lesson = lesson

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lesson.progress = state.global_step / max(state.max_steps, 1)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lesson.hold()


class Report(TrainerCallback):
    """Loss, layers, cost, tokens per second and time left: a line for people, metrics.jsonl for machines."""

    def __init__(self, lesson: Lesson, folder: Path):
        self.lesson, self.file = lesson, folder / "metrics.jsonl"
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress = Progress("training", int(state.max_steps), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seen, self.lesson.seen = {k: float(v) for k, v in self.lesson.seen.items()}, {}
        tokens = seen.pop("tokens")
        figures = {name: value / max(tokens, 1) for name, value in seen.items()}
        if not math.isfinite(figures["loss"]):
            raise ValueError(
                f"the loss is {figures['loss']} at step {state.global_step}; the last checkpoint is good: "
                "lower --lr and continue with --resume"
            )
        assert self.progress is not None
        self.progress.advance(int(tokens), **figures)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": state.global_step, "tokens": tokens, **figures}) + "\n")


class StopCleanly(TrainerCallback):
    """On SIGINT or SIGTERM: finish the step, save a checkpoint, stop."""

    def __init__(self):
        self.asked = False
        self.before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True

    def put_back(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, *_: Any) -> None:
        self.asked = True


def run_trainer(lesson: Lesson, rows: Dataset, config: TrainConfig, resume: bool) -> None:
    """Train the lesson's parts in place. Checkpoints go to `<output>/checkpoints`; `resume` goes on from the last whole
    one. Raises Interrupted after a signal, ValueError for a loss that is not a number or nothing to resume from.
    """
    output = Path(config.output)
    folder = output / "checkpoints"
    checkpoint = last_checkpoint(folder) if resume else None
    if resume and checkpoint is None:
        raise ValueError(f"nothing to resume: {folder} holds no complete checkpoint; start without --resume")
    if checkpoint is not None and _step(checkpoint) >= config.steps:  # only what comes after training was cut off
        lesson.load_state_dict(load_file(checkpoint / SAFE_WEIGHTS_NAME))
        return
    stop = StopCleanly()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(config.warmup * config.steps),
        max_grad_norm=config.clip,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=config.device == "cpu" or not torch.cuda.is_available(),
        save_steps=config.save_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
    )
    trainer = Trainer(
        model=lesson,
        args=arguments,
        train_dataset=rows,
        data_collator=default_data_collator,
        callbacks=[Hold(lesson), Report(lesson, output), stop],
        optimizers=(optimizer_for(lesson, config), None),
    )
    trainer.remove_callback(PrinterCallback)  # stdout belongs to whoever asked for --json
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        stop.put_back()
        sweep(folder)
    if stop.asked and trainer.state.global_step < config.steps:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {config.steps}; a checkpoint is saved in {folder}: "
            "repeat the command with --resume to go on"
        )


def optimizer_for(lesson: Lesson, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; routers may learn at another rate, and no gate's bias decays."""
    routers = {id(p) for m in lesson.modules() if isinstance(m, Router) for p in m.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in lesson.parameters():
        rate = config.lr * (config.router_lr if id(parameter) in routers else 1.0)
        groups.setdefault((rate, config.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()], betas=config.betas
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [path for path in folder.glob("checkpoint-*") if _whole(path)]
    return max(found, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def sweep(folder: Path) -> None:
    """Remove checkpoints that an interruption or a full disk left half-written."""
    for path in folder.glob("checkpoint-*"):
        if not _whole(path):
            shutil.rmtree(path, ignore_errors=True)


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True
