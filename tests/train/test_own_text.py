"""Training on the model's own text: what is asked, where a loop is cut, which pool a micro-batch takes, and that a run
with it resumes to the same plug-in."""

from __future__ import annotations

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from depthdial.models.checkpoint import PARTS_FILE
from depthdial.train import callbacks, own_text
from depthdial.train.config import TrainConfig
from depthdial.train.own_text import OwnText, bare, before_loop
from depthdial.train.pack import PackedDataset, PackStats
from depthdial.train.run import train


@pytest.fixture(scope="module")
def config(tiny_folder, tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"{i} + {i} = {2 * i}"} for i in range(80)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig(
        model=str(tiny_folder), data=(str(folder),), output="", budget=0.8, highest=0.9, steps=7, fit_steps=2, batch=2,
        length=96, heldout_tokens=256, generated_tokens=0, save_every=3, dtype="float32", device="cpu", on_policy=0.6,
        refresh=2, same_share=0.2, copies=2, fields={"weights": "hard", "gate_gradient": "sampled", "start": 0.0},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "TOKENS", 24)


@pytest.mark.parametrize(
    ("tokens", "before"),
    [
        (list(range(40)), 40),
        ([*range(100), *list(range(22)) * 5], 100 + 22 * 3),  # a sentence again and again
        ([*range(10), *[7] * 30], 10 + 12 - 1 + 1),  # a token again and again: its first is no repetition
        ([*range(10), *[1, 2, 3, 4, 5, 6, 7, 8] * 9], 10 + 8 * 3),
        ([*range(20), *range(20)], 40),  # once again is no loop
        ([], 0),
    ],
)
def test_a_loop_is_cut_once_it_has_run_for_two_periods(tokens: list[int], before: int):
    assert abs(before_loop(tokens) - before) <= 1


def test_a_run_with_its_own_text_resumes_to_the_same_plugin(config: TrainConfig, tmp_path, monkeypatch):
    whole = train(dataclasses.replace(config, output=str(tmp_path / "whole")))
    pools = sorted((whole / "own").iterdir())
    assert [pool.name for pool in pools] == ["0000.npz", "0001.npz", "0002.npz", "0003.npz"]
    assert len({pool.read_bytes() for pool in pools}) == 4, "text is new each time"

    torn, note = dataclasses.replace(config, output=str(tmp_path / "torn")), callbacks.Report.on_step_end

    def stopping(self, args, state, control, **more):
        note(self, args, state, control, **more)
        if state.global_step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Report, "on_step_end", stopping)
        with pytest.raises(callbacks.InterruptedRun, match=r"step 5 of 7.*--resume"):
            train(torn)
    (tmp_path / "torn" / "checkpoints" / "checkpoint-5").rename(tmp_path / "gone")  # it goes on from step 3
    assert (tmp_path / "torn" / "own" / "0002.npz").exists(), "written at step 4, which is done again"
    again = train(torn, resume=True)
    before, after = load_file(whole / PARTS_FILE), load_file(again / PARTS_FILE)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_a_pool_is_written_by_the_model_as_it_is(config: TrainConfig, tmp_path, monkeypatch):
    calls = []
    write = OwnText.write

    def watched(self: OwnText, number: int) -> PackedDataset:
        rows = write(self, number)
        calls.append((rows, self.count, [o.cost for o in outputs]))
        outputs.clear()
        return rows

    outputs: list = []
    generate = own_text.LLM.generate

    def kept(self, prompts, params, **more):
        output = generate(self, prompts, params, **more)
        outputs.extend(output)
        assert {p.temperature for p in params} <= {0.0, 0.7} and all(0.5 < p.budget <= 0.9 for p in params)
        return output

    monkeypatch.setattr(OwnText, "write", watched)
    monkeypatch.setattr(own_text.LLM, "generate", kept)
    train(dataclasses.replace(config, output=str(tmp_path / "run"), steps=3))
    assert len(calls) == 2
    for rows, count, costs in calls:
        assert len(rows) >= count
        share = rows.target.sum() / np.prod(rows.target.shape)
        assert 0.1 < share < 0.8, "answers are targets, questions are not"
        assert min(costs) < 0.95, "what is written skips"


def test_a_pool_that_is_lost_is_written_again_and_said(tmp_path, caplog, monkeypatch):
    own = object.__new__(OwnText)
    own.every, own.folder = 10, tmp_path
    ids = np.zeros((1, 8), np.uint16)
    rows = PackedDataset(ids, ids == 1, ids, PackStats(1, 0, 1, 8, 0, 1.0))
    monkeypatch.setattr(OwnText, "write", lambda self, number: rows)
    own.begin(0)
    assert [file.name for file in tmp_path.iterdir()] == ["0000.npz"] and not caplog.records
    own.begin(25)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0000.npz", "0001.npz", "0002.npz"]
    assert [record.args[1] for record in caplog.records] == [25, 25]


def test_micro_batches_take_the_pool_of_the_period_before(tmp_path):
    own = object.__new__(OwnText)
    own.every, own.micro_batches, own._pool, own.folder = 10, 2, None, tmp_path
    names: list[int] = []

    def load(path):
        names.append(int(path.stem))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_text.PackedDataset, "load", staticmethod(load))
        for index in (0, 19, 20, 39, 40, 41, 60):
            own.rows(index)
    assert names == [0, 1, 2]


def test_a_model_without_chat_template_answers_as_its_rows_are_written():
    request = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
    assert bare(request) == "System: Be short.\n\nUser: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text": "the quick brown fox jumps over the lazy dog " * 8}] * 40,
            "no row has `messages` with a user's turn",
        ),
    ],
)
def test_data_without_questions_is_refused_by_the_field(config: TrainConfig, rows, message, tmp_path):
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, data=(str(tmp_path / "plain.jsonl"),), output=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_policy": 1.5}, "on_policy is a share of rows, 0 to 1, not 1.5"),
        ({"prompt_budget": "same"}, "own text is written after prompts read in full"),
        ({"prompt_budget": 0.5}, "training reads prompts in full"),
        ({"objective": "lm"}, "taught by the base"),
        ({"divergence": "l2"}, "divergence must be one of forward, reverse, js, not 'l2'"),
        ({"copies": 0}, "copies must be at least 1"),
        ({"same_share": -0.1}, "same_share is a share of rows"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: TrainConfig, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)
