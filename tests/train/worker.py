"""One of several processes that train together; started by test_processes.py, which says what to do in a JSON file."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import torch

from depthdial.train import callbacks, processes
from depthdial.train.config import TrainConfig
from depthdial.train.pretrain import pretrain
from depthdial.train.pretrain_config import PretrainConfig
from depthdial.train.run import train


def main() -> None:
    torch.set_num_threads(1)
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    step_end = callbacks.Report.on_step_end
    for job in jobs:
        where = job.get("stop")

        def watched(self: Any, args: Any, state: Any, control: Any, where: Any = where, **kwargs: Any) -> None:
            step_end(self, args, state, control, **kwargs)
            if where is not None and [processes.rank(), state.global_step] == where:
                signal.raise_signal(signal.SIGTERM)

        callbacks.Report.on_step_end = watched
        try:
            if job["kind"] == "pretrain":
                pretrain(PretrainConfig(**job["config"]), job.get("resume", False))
            else:
                train(TrainConfig(**job["config"]), job.get("resume", False))
        except callbacks.InterruptedRun:
            assert where is not None
        processes.wait()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
