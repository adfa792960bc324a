"""The command itself, as a process: ports, errors before anything is served, and what SIGTERM does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from depthdial.serve.engine_process import EngineProcess
from depthdial.serve.run import bind, run


def test_a_port_that_is_taken_is_an_error_that_says_so():
    with bind("127.0.0.1", 0) as names:
        names.listen()
        port = names.getsockname()[1]
        with pytest.raises(OSError, match="--port") as caught:
            bind("127.0.0.1", port)
        assert caught.value.filename == f"127.0.0.1:{port}"


def test_tokens_do_not_wait_for_receipts():
    """asyncio sets TCP_NODELAY only on sockets that name their protocol."""
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.slow
def test_sigterm_finishes_what_is_begun_and_takes_nothing_new(tiny_folder, tiny_plugin):
    """The engine is stopped while the signal comes, so that the answer is not finished by then."""
    command = [sys.executable, "-m", "depthdial", "serve", "--port", "0", "--model", str(tiny_folder)]
    command += ["--plugin", str(tiny_plugin), "--dtype", "float32", "--device", "cpu"]
    server, engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), None
    try:
        assert server.stdout is not None
        result = re.search(r"http://127\.0\.0\.1:(\d+)", server.stdout.readline())
        assert result is not None
        port = int(result[1])
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(server.pid)], capture_output=True, text=True)
        (engine,) = (int(pid) for pid in children.stdout.split())
        body = {"model": tiny_folder.name, "prompt": "x", "max_tokens": 50, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=120) as response:
            lines = response.iter_lines()
            facts = [next(lines)]
            os.kill(engine, signal.SIGSTOP)
            server.send_signal(signal.SIGTERM)
            errors = False
            while not errors:  # the port closes as soon as the signal has come
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=60).close()
                except ConnectionRefusedError:
                    errors = True
                except ConnectionResetError:  # it closed just then
                    continue
            os.kill(engine, signal.SIGCONT)
            facts += lines
        texts = [json.loads(line[6:]) for line in facts if line.startswith("data: {")]
        assert facts[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in facts[-2:]
        ends = [choice["finish_reason"] for chunk in texts for choice in chunk["choices"] if choice["finish_reason"]]
        assert ends == ["length"] and "error" not in texts[-1]
        assert server.wait(120) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)
    finally:
        server.kill()
        server.wait()
        if engine is not None:  # stopped, it would outlive a test that fails
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)


def test_who_reads_where_it_serves_may_connect_and_stop_it_at_once(settings, monkeypatch):
    """Before uvicorn has done anything: the engine is there, and then the line is said."""
    calls = []

    async def nothing(self) -> None:
        pass

    def say(line: str) -> None:
        result = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert result is not None
        calls.append(socket.create_connection(("127.0.0.1", int(result[1])), timeout=60))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EngineProcess, "start", nothing)
    before = [signal.getsignal(stop) for stop in (signal.SIGTERM, signal.SIGINT)]
    try:
        run(settings, "127.0.0.1", 0, say)
    finally:
        for stop, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(stop, handler)
    calls[0].close()
