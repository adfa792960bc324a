"""What is ours in the Trainer's loop: the report of each step, a loss that is no number, and a clean stop."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from depthdial.core.whole import write_text
from depthdial.train import processes
from depthdial.train.checkpoints import last_checkpoint, seal
from depthdial.train.progress import Progress

Figures = dict[str, Any]


class InterruptedRun(ValueError):
    """Training was stopped from outside, after a checkpoint."""


class StepTotals(Protocol):
    """What notes sums over the micro-batches of a step."""

    totals: dict[str, Tensor]
    """Sums since the last report, fp32 [] or [L]; "loss" and "tokens" among them."""


class Report(TrainerCallback):
    """Means per token of what was seen, over all processes: a line for people, metrics.jsonl for machines.

    Raises ValueError before the optimizer moves if the loss or a gradient is not a number, so that weights, and any
    later checkpoint, stay good.
    more: further figures of a step, from its figures and its seconds.
    """

    def __init__(self, lesson: StepTotals, folder: Path, more: Callable[[Figures, float], Figures] | None = None):
        self.lesson, self.file, self.more = lesson, folder / "metrics.jsonl", more
        self.progress: Progress | None = None
        self.figures: Figures = {}
        self.last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if processes.is_main():
            self.progress = Progress("training", int(state.max_steps), state.global_step)
            self._cut(state.global_step)
        self.last = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        sums, self.lesson.totals = {k: v.float() for k, v in self.lesson.totals.items()}, {}
        processes.total(list(sums.values()))
        tokens = float(sums.pop("tokens"))
        self.figures = {"tokens": tokens, **{k: _plain(v / max(tokens, 1.0)) for k, v in sums.items()}}
        step = state.global_step + 1
        if not math.isfinite(self.figures["loss"]):
            raise ValueError(f"the loss is {self.figures['loss']} at step {step}; {self._remedy()}")
        if model is not None and not _finite(model.parameters()):
            raise ValueError(f"a gradient is not a number at step {step}; {self._remedy()}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        if self.progress is None:
            return
        figures = {**self.figures, **(self.more(self.figures, seconds) if self.more else {})}
        numbers = {k: v for k, v in figures.items() if isinstance(v, float) and k != "tokens"}
        self.progress.advance(int(figures["tokens"]), **numbers)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **figures}) + "\n")

    def _remedy(self) -> str:
        good = last_checkpoint(self.file.parent / "checkpoints")
        if good is None:
            return "no checkpoint was written yet: start again with a lower --lr"
        return f"the last checkpoint is good ({good.name}): start again with a lower --lr, or --resume after a fault"

    def _cut(self, step: int) -> None:
        """Forget the steps that a resumed run does again."""
        if not self.file.is_file():
            return
        lines = [line for line in self.file.read_text(errors="replace").splitlines() if _step(line) <= step]
        write_text(self.file, "".join(f"{line}\n" for line in lines))


class Seal(TrainerCallback):
    """Seals each checkpoint once every process has written its part of it."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes.wait()
        if processes.is_main():
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class StopCleanly(TrainerCallback):
    """On SIGINT or SIGTERM to any process: finish the step, save a checkpoint, stop."""

    def __init__(self):
        self.stopping = False
        self.before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stopping = processes.any_process(self.stopping, args.device)
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def put_back(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def check(self, step: int, steps: int, folder: Path) -> None:
        """Raises InterruptedRun if training ended before its last step because it was asked to."""
        if self.stopping and step < steps:
            raise InterruptedRun(
                f"stopped at step {step} of {steps}; a checkpoint is saved in {folder}: "
                "repeat the command with --resume to go on"
            )

    def _ask(self, *_: Any) -> None:
        self.stopping = True


def _finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Clipping has spread a bad norm over every gradient on every process: a sum of each one shows it."""
    sums = [p.grad.detach().float().sum() for p in parameters if p.grad is not None]
    return not sums or bool(torch.stack([_local(s) for s in sums]).isfinite().all())


def _local(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def _plain(value: Tensor) -> float | list[float]:
    return float(value) if value.ndim == 0 else [round(x, 6) for x in value.tolist()]


def read_metrics(file: Path) -> list[Figures]:
    """The lines of metrics.jsonl; one that was cut off counts as not there."""
    lines = file.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if _step(line) < math.inf]


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that was cut off
