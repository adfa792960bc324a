"""Two processes train like one: the same curve, whatever is reduced; a checkpoint of N processes resumes on M."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from depthdial.train import callbacks, processes
from depthdial.train.config import TrainConfig
from depthdial.train.pretrain import pretrain
from depthdial.train.pretrain_config import PretrainConfig
from depthdial.train.run import train

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory) -> Path:
    """Folders of runs: each job done by two processes, and by this one as `one-*`."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"text": f"the quick brown fox number {i} jumps over {i * 7 % 13} lazy dogs"} for i in range(80)]
    (folder / "fox.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pre = PretrainConfig(
        data=(str(folder / "fox.jsonl"),), output="", size="2x2@16,ffn=32", method="skiplayer", tokenizer="train:280",
        steps=5, batch=16, length=16, lr=1e-2, save_every=5, eval_every=5, heldout=0.1, device="cpu", gather="off",
        shards=str(folder / "shards"),
    )  # fmt: skip
    plug = TrainConfig(
        model=str(tiny_folder), data=(str(folder / "fox.jsonl"),), output="", budget=0.9, highest=0.95, steps=4,
        fit_steps=1, batch=4, length=32, heldout_tokens=64, generated_tokens=0, save_every=4, dtype="float32",
        device="cpu", fields={"weights": "hard"}, shortlist=0,  # a shortlist is one of a process's own rows
    )  # fmt: skip

    def job(kind: str, config: Any, name: str, **more: Any) -> dict[str, Any]:
        facts = dataclasses.replace(config, output=str(folder / name))
        return {"kind": kind, "config": dataclasses.asdict(facts), **more}

    def alone(name: str, **changes: Any) -> None:
        pretrain(dataclasses.replace(pre, output=str(folder / name), **changes))

    alone("one-ddp")
    train(dataclasses.replace(plug, output=str(folder / "one-train")))
    _stopped(lambda: alone("one-then-two"), 3)
    sharded = dataclasses.replace(pre, gather="on", fsdp=True)
    _together(
        [
            job("pretrain", pre, "ddp"),
            job("pretrain", pre, "one-then-two", resume=True),
            job("pretrain", pre, "two-then-one", stop=[1, 3]),
            job("train", plug, "train"),
            job("pretrain", sharded, "fsdp", stop=[0, 3]),
            job("pretrain", sharded, "fsdp", resume=True),
        ],
        folder,
    )
    pretrain(dataclasses.replace(pre, output=str(folder / "two-then-one")), resume=True)
    alone("one-gathered", gather="on")
    return folder


def _stopped(run: Any, step: int) -> None:
    """Run until a signal after `step`."""
    step_end = callbacks.Report.on_step_end

    def interrupt(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_end(self, args, state, control, **kwargs)
        if state.global_step == step:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Report, "on_step_end", interrupt)
        with pytest.raises(callbacks.InterruptedRun):
            run()


def _together(jobs: list[dict[str, Any]], folder: Path, world: int = 2) -> None:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    facts = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    server = []
    for rank in range(world):
        environment = {**os.environ, **facts, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(WORKER), str(folder / "jobs.json")]
        log = (folder / f"rank{rank}.log").open("w")
        server.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=300) for process in server]
    finally:
        for process in server:
            process.kill()
    assert codes == [0] * world, (folder / "rank0.log").read_text()[-3000:] + (folder / "rank1.log").read_text()[-3000:]


def curve(folder: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line["step"], line["loss"], line["cost"], line["tokens"]] for line in lines if "loss" in line]


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("ddp", "one-ddp"),
        ("two-then-one", "one-ddp"),
        ("one-then-two", "one-ddp"),
        ("fsdp", "one-gathered"),
    ],
)
def test_pretraining_on_two_is_pretraining_on_one(runs: Path, name: str, alone: str):
    torch.testing.assert_close(
        torch.tensor(curve(runs / name)), torch.tensor(curve(runs / alone)), rtol=1e-4, atol=1e-4
    )
    one, two = weights(runs / alone), weights(runs / name)
    assert one.keys() == two.keys()
    # a bit of a sum's rounding can flip a decision that is a tie; Adam makes much of tiny gradients
    torch.testing.assert_close(two, one, rtol=5e-3, atol=5e-3)
    if "fsdp" in name:
        assert list((runs / name / "checkpoints").glob("*/*fsdp*")), "sharded, not copied"
    results = [json.loads((runs / folder / "results.json").read_text()) for folder in (name, alone)]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=2e-3)


def test_training_a_plugin_on_two_is_training_it_on_one(runs: Path):
    torch.testing.assert_close(
        torch.tensor(curve(runs / "train")), torch.tensor(curve(runs / "one-train")), rtol=1e-4, atol=1e-4
    )
    rest = [runs / name / "checkpoints" / "checkpoint-4" for name in ("train", "one-train")]
    two, one = (weights(folder) for folder in rest)
    torch.testing.assert_close(two, one, rtol=2e-3, atol=1e-4)
    assert any(not torch.equal(one[name], torch.zeros_like(one[name])) for name in one if "control.price" in name)


@given(batch=st.integers(1, 64), accumulate=st.integers(1, 8), world=st.integers(1, 6))
def test_a_share_is_an_equal_part_of_the_work(batch: int, accumulate: int, world: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "world", lambda: world)
        if batch * accumulate % world:
            with pytest.raises(ValueError, match="cannot be shared"):
                processes.share(batch, accumulate)
            return
        rows, passes = processes.share(batch, accumulate)
    assert rows * passes * world == batch * accumulate and (batch % world or passes == accumulate)


def test_alone_nothing_is_reduced():
    value = torch.tensor([1.0, 2.0])
    processes.total([value])
    processes.start(on_cpu=True)
    processes.wait()
    assert value.tolist() == [1.0, 2.0] and processes.world() == 1 and processes.is_main()
    assert processes.any_process(True) and not processes.any_process(False)
