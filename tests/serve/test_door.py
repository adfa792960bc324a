"""Connections that say nothing, say it slowly, half close, or are too many: over real sockets."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from tests.serve.test_engine_process import begun, frozen

from depthdial.serve.door import Doors
from depthdial.serve.log_lines import MOST, SECONDS, Sparing
from depthdial.serve.settings import RequestLimits


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def rest(line: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    facts = b""
    while part := line.recv(65536):
        facts += part
    return facts


HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("said", [b"", b"G", HEAD, HEAD + b"X: " + b"y" * 1000])
def test_who_never_ends_its_headers_is_told_so_and_let_go(served, said):
    with connected(served.strict) as line:
        line.sendall(said)
        assert rest(line).startswith(b"HTTP/1.1 408")


def test_the_next_request_of_a_connection_has_its_time_too(served):
    with connected(served.strict) as line:
        line.sendall(HEAD + b"\r\n")
        assert line.recv(15) == b"HTTP/1.1 200 OK"
        line.sendall(HEAD)
        assert b"HTTP/1.1 408" in rest(line)


@pytest.mark.parametrize("said", [b"", HEAD, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"])
def test_connections_that_ask_nothing_stop_nobody(served, said):
    """Three times as many as there may be, none of which ends by itself."""
    lines = [connected(served.narrow) for _ in range(24)]
    for line in lines:
        try:
            line.sendall(said)
        except OSError:  # it gave way already
            continue
    assert httpx.get(f"{served.narrow}/health", timeout=60).status_code == 200
    for line in lines:
        line.close()


def test_connections_that_wait_for_answers_do_not_give_way(served):
    with frozen(served):
        lines = []
        for line in (connected(served.narrow) for _ in range(8)):
            line.sendall(request(served))
            lines.append(line)
        assert served.becomes(lambda: served.texts() == 8)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{served.narrow}/health", timeout=60)
    for line in lines:
        assert line.recv(15) == b"HTTP/1.1 200 OK"
        line.close()
    assert served.becomes(lambda: httpx.get(f"{served.narrow}/health", timeout=60).status_code == 200)


def request(served, *headers: str, **fields) -> bytes:
    body = json.dumps({"model": served.name, "prompt": "hi", "max_tokens": 3, "temperature": 0, **fields}).encode()
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.parametrize("headers", [(), ("Connection: close",)])
@pytest.mark.parametrize("stream", [False, True])
def test_who_sends_no_more_gets_its_answer(served, headers, stream):
    with connected(served.url) as line:
        line.sendall(request(served, *headers, stream=stream))
        line.shutdown(socket.SHUT_WR)
        facts = rest(line)
    assert facts.startswith(b"HTTP/1.1 200 OK") and (b"[DONE]" in facts if stream else b'"finish_reason"' in facts)


def test_who_sends_no_more_gets_an_answer_that_takes_longer(served):
    with frozen(served):
        line = connected(served.url)
        line.sendall(request(served))
        line.shutdown(socket.SHUT_WR)
        assert line.recv(12) == b"HTTP/1.1 100"  # is it still there?
    assert b"HTTP/1.1 200 OK" in rest(line)
    line.close()


def test_two_requests_in_a_row_before_the_end_are_both_answered(served):
    with connected(served.url) as line:
        line.sendall(request(served) + request(served, "Connection: close"))
        line.shutdown(socket.SHUT_WR)
        assert rest(line).count(b"HTTP/1.1 200 OK") == 2


def test_who_is_gone_is_noticed_before_the_answer(served):
    """Whether a client closed or half closed shows only when it is asked."""
    with frozen(served):
        lines = [begun(served, stream=False) for _ in range(3)]
        assert served.becomes(lambda: served.texts() == 3)
        for line in lines:
            line.close()
        assert served.becomes(lambda: served.texts() == 0)


@pytest.mark.parametrize(
    ("files", "most", "backlog"), [(256, 96, 32), (1024, 576, 128), (65536, 1024, 2048), (16, 1, 2)]
)
def test_there_are_fewer_connections_than_descriptors(files, most, backlog):
    doors = Doors(RequestLimits(), files)
    assert (doors.most, doors.backlog) == (most, backlog)


def test_a_log_takes_a_few_lines_of_each_place_and_more_later():
    now = [0.0]
    sparing = Sparing(lambda: now[0])

    def passed(place: int) -> list[str]:
        records = [logging.LogRecord("x", 30, "file.py", place, "line %d", (i,), None) for i in range(1000)]
        return [record.getMessage() for record in records if sparing.filter(record)]

    assert len(passed(1)) == len(passed(2)) == MOST and passed(1) == []
    now[0] = SECONDS
    facts = passed(1)
    assert len(facts) == MOST and "left out" in facts[-1] and facts[0] == "line 0"


@pytest.mark.slow
def test_four_hundred_that_never_end_their_headers_with_256_descriptors(tiny_folder, tiny_plugin, tmp_path):
    command = [sys.executable, "-m", "depthdial", "serve", "--port", "0", "--model", str(tiny_folder)]
    command += ["--plugin", str(tiny_plugin), "--dtype", "float32", "--device", "cpu"]
    log = tmp_path / "log"
    with log.open("wb") as errors:
        server = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        )
    lines: list[socket.socket] = []
    try:
        assert server.stdout is not None
        result = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert result is not None
        for _ in range(400):
            lines.append(connected(result[0]))
            lines[-1].sendall(b"GET /health HTTP/1.1\r\nHost:")
        for _ in range(20):
            assert httpx.get(f"{result[0]}/health", timeout=60).status_code == 200
        assert os.path.getsize(log) < 100_000
    finally:
        for line in lines:
            line.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
