"""Other engines, each in a Python of its own, spoken to in lines of JSON.

A driver (benchmarks/peers/*.py) is started once and waits between requests, so that it takes its turn in the same
interleaved repeats as ours. It says what it is in its first line; then each line in is {"prompts": [[ids], ...],
"new_tokens": n} and each line out {"first": seconds, "rest": seconds, "tokens": [[ids], ...]} or {"error": "..."}.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from depthdial.evaluate.speed.subjects import Regime, SpeedSubject, TimedRun


class Peer(NamedTuple):
    """One engine: its driver, the precisions it runs in, and whether it takes more than one text at a time."""

    driver: str
    precisions: tuple[str, ...]
    batches: bool
    title: str


PEERS: dict[str, Peer] = {
    "llama-cpp": Peer("llama_cpp_speed.py", ("bf16", "q8_0", "q4_1"), True, "llama.cpp"),
    "economize": Peer("economize_speed.py", ("bf16",), False, "economize flexidepth"),
    "vllm": Peer("vllm_speed.py", ("bf16",), True, "vLLM"),
    "tide": Peer("tide_speed.py", ("bf16",), False, "TIDE"),
}


class PeerSubject(SpeedSubject):
    """A peer at one precision. Raises ValueError, in one line, if its driver does not start."""

    kind = "peer"
    optional = True

    def __init__(self, peer: Peer, precision: str, python: str, script: Path, model: Path, threads: int):
        self.name, self.precision, self._batches = peer.title, precision, peer.batches
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        command = [python, str(script), "--model", str(model), "--precision", precision, "--threads", str(threads)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            )
        except OSError as error:
            raise ValueError(f"{peer.title}: {python} cannot be started ({error.strerror}); name its Python with "
                             "--peer-python") from None  # fmt: skip
        try:
            self.about: Mapping[str, Any] = self._read()
        except ValueError:
            self.close()
            raise
        """What the driver tells of itself: versions, options."""
        self.answers: list[list[int]] = []
        """The tokens of the last run."""

    def takes(self, regime: Regime) -> bool:
        return self._batches or regime.batch == 1

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedRun:
        request = {"prompts": [list(prompt) for prompt in prompts], "new_tokens": new_tokens}
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # the answer below says why
            pipe.write(json.dumps(request) + "\n")
            pipe.flush()
        answer = self._read()
        self.answers = answer["tokens"]
        steps = new_tokens - 1
        return TimedRun(answer["first"], answer["rest"], steps * len(prompts), steps)

    def close(self) -> None:
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of a request that never arrived
                    pipe.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if code < 0:
                raise ValueError(f"{self.name}: its driver was ended by {signal.Signals(-code).name}")
            self._log.seek(0)
            lines = [text.strip() for text in self._log.read().splitlines() if text.strip()] or ["no message"]
            raise ValueError(f"{self.name}: its driver ended ({lines[-1][:300]})")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.name}: {answer['error']}")
        return answer


def drivers() -> Path:
    """Where the drivers are. ValueError outside of a checkout: they are no part of the package."""
    folder = Path(__file__).resolve().parents[4] / "benchmarks" / "peers"
    if not folder.is_dir():
        raise ValueError(
            "peers are measured from a checkout of depthdial, which holds their drivers (benchmarks/peers)"
        )
    return folder


def check_peers(names: Sequence[str], pythons: Mapping[str, str]) -> None:
    """ValueError for a peer that is not known, or has no Python."""
    for name in (*names, *pythons):
        if name not in PEERS:
            raise ValueError(f"peer {name!r} is not known; give some of {', '.join(PEERS)}")
    for name in names:
        if name not in pythons:
            raise ValueError(f"peer {name} needs the Python it is installed in: --peer-python {name}=PATH")


def start_peers(
    names: Sequence[str], pythons: Mapping[str, str], model: Path
) -> tuple[list[PeerSubject], dict[str, dict[str, Any]]]:
    """The peers that start, and what each tells of itself, or the reason why it does not. model: a folder as
    `save_pretrained` writes it."""
    check_peers(names, pythons)
    folder, subjects, about = drivers(), [], {}
    for name in names:
        peer = PEERS[name]
        for precision in peer.precisions:
            title = f"{peer.title}, {precision}"
            try:
                subject = PeerSubject(
                    peer, precision, pythons[name], folder / peer.driver, model, torch.get_num_threads()
                )
            except ValueError as error:
                about[title] = {"missing": str(error)}
            else:
                subjects.append(subject)
                about[title] = dict(subject.about)
    return subjects, about
