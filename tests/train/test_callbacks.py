"""The report of a step: means over its tokens, a line in the file, and no step with a number that is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from depthdial.train.callbacks import InterruptedRun, Report, StopCleanly

STATE = SimpleNamespace(global_step=4, max_steps=9)


def seen(**more: float) -> Any:
    sums = {"loss": 30.0, "tokens": 10.0, **more}
    return SimpleNamespace(totals={**{k: torch.tensor(v) for k, v in sums.items()}, "kept": torch.tensor([10.0, 5.0])})


def test_a_line_per_step_with_means_and_what_else_is_asked_for(tmp_path: Path):
    lesson = seen(cost=5.0)
    report = Report(lesson, tmp_path, lambda figures, seconds: {"double": 2 * figures["loss"]})
    report.on_train_begin(None, STATE, None)
    report.on_pre_optimizer_step(None, STATE, None)
    report.on_step_end(None, SimpleNamespace(global_step=5), None)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 5, "tokens": 10, "loss": 3.0, "cost": 0.5, "kept": [1.0, 0.5], "double": 6.0}
    assert lesson.totals == {}


def test_a_resumed_run_forgets_the_steps_that_it_does_again(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 8)) + '{"st')
    Report(seen(), tmp_path).on_train_begin(None, STATE, None)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_stops_before_the_optimizer_moves(tmp_path: Path, bad: float):
    report = Report(seen(loss=bad), tmp_path)
    with pytest.raises(ValueError, match=rf"the loss is {bad} at step 5; no checkpoint was written yet"):
        report.on_pre_optimizer_step(None, STATE, None)
    (tmp_path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    model = nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[0.0, bad], [0.0, 0.0]])
    report = Report(seen(), tmp_path)
    with pytest.raises(
        ValueError, match=r"a gradient is not a number at step 5; the last checkpoint is good \(checkpoi"
    ):
        report.on_pre_optimizer_step(None, STATE, None, model=model)
    model.weight.grad = torch.ones(2, 2)
    report = Report(seen(), tmp_path)
    report.on_pre_optimizer_step(None, STATE, None, model=model)


def test_only_a_stop_before_the_end_is_an_interruption(tmp_path: Path):
    stop = StopCleanly()
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    stop.on_step_end(SimpleNamespace(device="cpu"), STATE, control)
    stop.check(4, 9, tmp_path)
    assert not control.should_save
    stop.stopping = True
    stop.on_step_end(SimpleNamespace(device="cpu"), STATE, control)
    assert control.should_save and control.should_training_stop
    stop.check(9, 9, tmp_path)
    with pytest.raises(InterruptedRun, match=r"step 4 of 9.*--resume"):
        stop.check(4, 9, tmp_path)
