"""Run a program that nobody has read. Linux only; where the kernel refuses a lock, nothing is run.

What is guaranteed, by the kernel, from before the program's first line until it has ended:
- no network and no other process: sockets, forks, threads, `exec`, signals and tracing are refused, and so are the
  scheduling of processes and locks of files, for which another would wait (seccomp);
- nothing is written, made, moved or removed anywhere, and no owner, mode or time of a file changes (Landlock, seccomp);
- at most `SECONDS` of time, `MEMORY` bytes of memory, no core dump; it is killed when the caller gives up on it.
What is not: files that the user may read can be read; but all that comes out is "passed", or how it failed.
"""

from __future__ import annotations

import functools
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 5.0
MEMORY = 1 << 30
MOST_OUTPUT = 4096
"""Bytes: what an honest child can say. A program may find the pipe, and must not fill our memory through it."""
_LOCKED = "locked"
_PASSED = "passed"
_SOURCE = Path(__file__).with_name("locks.py")


def run(program: str, seconds: float = SECONDS) -> str:
    """ "passed", or how it failed: "timed out", or "failed: ..." with its last line.

    Raises ValueError where no sandbox can be had.
    """
    check_sandbox()
    return _run(program, seconds)


@functools.cache
def check_sandbox() -> None:
    """ValueError unless programs can be locked in here: tries it once."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise ValueError(f"untrusted code can be locked in on Linux (x86-64, arm64) only, not on {platform.platform()}")
    result = _run("", SECONDS * 4)
    if result != _PASSED:
        raise ValueError(f"this kernel does not lock programs in ({result}); tasks that run code cannot be run here")
    tries = (
        "import socket; socket.socket()", "open('x', 'w')", "import os; os.fork()", "import os; os.kill(1, 0)",
        "import os; os.remove(__import__('sys').executable + '.no')", "x = 'x' * (1 << 34)",
        "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))",
        "import fcntl, sys; fcntl.flock(open(sys.executable, 'rb'), fcntl.LOCK_SH)",
    )  # fmt: skip
    for attempt in tries:
        if _run(attempt, SECONDS * 4) == _PASSED:
            raise ValueError(f"the sandbox does not hold here ({attempt!r} went through); no untrusted code is run")


def _run(program: str, seconds: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-S", "-B", str(_SOURCE), str(MEMORY), str(int(seconds) + 1)]
        environment = {"PATH": "", "HOME": folder, "PYTHONHASHSEED": "0"}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        ) as child:
            try:
                out = _output(child, program, time.monotonic() + seconds)
            except subprocess.TimeoutExpired:
                return "timed out"
            finally:
                child.kill()
    if len(out) > MOST_OUTPUT:
        return "failed: wrote into the pipe of the sandbox"
    lines = out.decode(errors="replace").splitlines()
    if not lines or lines[0] != _LOCKED:
        return f"failed: {lines[0] if lines else 'no lock'}"
    if len(lines) > 1 and lines[-1] == _PASSED and child.returncode == 0:
        return _PASSED
    return lines[-1] if len(lines) > 1 else f"failed: ended by {-child.returncode}"


def _output(child: subprocess.Popen[bytes], program: str, end: float) -> bytes:
    """What the child writes until it ends, or a little more than `SAID`. TimeoutExpired at the time `end`."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(program.encode(errors="replace"))
    child.stdin.close()
    out, there = b"", child.stdout.fileno()
    while len(out) <= MOST_OUTPUT:
        seconds = max(0.0, end - time.monotonic())
        if not select.select([there], [], [], seconds)[0]:
            raise subprocess.TimeoutExpired(child.args, seconds)
        if not (piece := os.read(there, MOST_OUTPUT)):
            child.wait(max(0.0, end - time.monotonic()))
            break
        out += piece
    return out
