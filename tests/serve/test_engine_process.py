"""Slots, queues, time limits and the death of the engine. Its process is stopped and continued by signals, so that
nothing here depends on how fast it is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
from tests.serve.conftest import KEY

from depthdial.serve.engine_process import EngineProcess
from depthdial.serve.metrics import Metrics


@contextmanager
def frozen(served) -> Iterator[None]:
    """The engine's process does nothing meanwhile."""
    pid = served.engine.facts["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def begun(served, **fields) -> socket.socket:
    """A connection whose request is sent and not answered yet."""
    body = {"model": served.name, "prompt": "x", "max_tokens": 100, "ignore_eos": True, "stream": True, **fields}
    data, host = json.dumps(body).encode(), served.url.removeprefix("http://")
    line = socket.create_connection(tuple(host.split(":")), timeout=60)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    line.sendall(f"{head}\r\n\r\n".encode() + data)
    return line


def test_who_hangs_up_frees_the_slot_streamed_or_not(served, ask):
    assert served.becomes(lambda: served.counts() == (0, 0))
    for stream in (True, False):
        with frozen(served):
            lines = [begun(served, stream=stream, n=4) for _ in range(3)]
            assert served.becomes(lambda: served.texts() == 12)
        assert b"200" in lines[0].recv(15)
        for line in lines:
            line.close()
        assert served.becomes(lambda: served.texts() == 0 and served.counts() == (0, 0))
    assert ask(max_tokens=2).status_code == 200


def test_who_hangs_up_while_reading_frees_the_slot(served):
    line = begun(served, n=4, max_tokens=100)
    assert b"200" in line.recv(20)
    line.close()
    assert served.becomes(lambda: served.texts() == 0 and served.counts() == (0, 0))


def test_a_full_queue_is_429_with_a_time_to_come_back(served, ask):
    with frozen(served):
        lines = [begun(served, n=6), begun(served, n=6)]  # twelve places: four that run and eight that wait
        assert served.becomes(lambda: served.texts() == 12)
        full = ask(max_tokens=2)
        assert full.status_code == 429 and int(full.headers["Retry-After"]) > 0
        assert full.json()["error"]["type"] == "rate_limit_error"
        for line in lines:
            line.close()
    assert served.becomes(lambda: served.texts() == 0 and served.counts() == (0, 0))
    assert ask(max_tokens=2).status_code == 200
    assert ask(max_tokens=2, n=13).status_code == 400  # which could never be taken


def test_what_takes_too_long_is_504_and_frees_the_slot(served):
    body = {"model": served.name, "prompt": "x", "max_tokens": 100}
    with frozen(served):
        late = httpx.post(
            f"{served.strict}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
        assert served.texts() == 0
    assert served.becomes(lambda: served.counts() == (0, 0))


def test_a_client_that_reads_slowly_gets_all_of_it(served):
    line = begun(served, n=4, max_tokens=100, return_depth=True)
    assert served.becomes(lambda: served.texts() == 0)  # the engine does not wait for it
    facts = b""
    while b"[DONE]" not in facts:
        facts += line.recv(512)
    line.close()


def test_many_at_once_are_all_answered(served, ask):
    """More than run at a time, fewer than may wait."""

    def one(i: int) -> str:
        return ask("the quick", max_tokens=12, temperature=1.0, seed=i % 3, ignore_eos=True).json()["choices"][0][
            "text"
        ]

    with ThreadPoolExecutor(10) as pool:
        texts = list(pool.map(one, range(30)))
    assert all(texts[i] == texts[i % 3] for i in range(30)) and len(set(texts)) == 3


def test_a_killed_engine_is_503_and_comes_back(served, ask):
    line = begun(served, n=4, max_tokens=100)
    line.recv(15)
    os.kill(served.engine.facts["pid"], signal.SIGKILL)
    facts = b""
    while part := line.recv(65536):
        facts += part
        if facts.endswith(b"0\r\n\r\n"):
            break
    # the clock is set ahead for the request's own limit, too: whichever looks first ends the text
    assert any(end in facts for end in (b"engine_unavailable", b'"code":"timeout"', b"[DONE]"))
    assert served.becomes(lambda: served.engine.facts is None or ask(max_tokens=1).status_code == 503)
    down = ask(max_tokens=1)
    if down.status_code != 200:  # unless it was quicker than we
        assert (
            down.status_code == 503 and down.headers["Retry-After"] and down.json()["error"]["type"] == "server_error"
        )
        assert httpx.get(f"{served.url}/health", timeout=60).status_code == 503
    assert served.becomes(lambda: httpx.get(f"{served.url}/health", timeout=60).status_code == 200, seconds=240)
    assert ask(max_tokens=2).status_code == 200
    assert "depthdial:engine_restarts_total" in httpx.get(f"{served.url}/metrics", timeout=60).text


def test_a_hung_engine_is_503_and_then_replaced(served, ask):
    """SIGSTOP, and a clock that is set ahead: first it is only said, and passes; then another process is started."""

    def healthy() -> bool:
        return httpx.get(f"{served.url}/health", timeout=60).status_code == 200

    pid, limit = served.engine.facts["pid"], served.engine.settings.limits.watchdog
    assert healthy()
    with frozen(served):
        served.clock.ahead += limit * 0.6
        late = httpx.get(f"{served.url}/health", timeout=60)
        assert late.status_code == 503 and late.json() == {"status": "stalled"}
    assert served.becomes(healthy) and served.engine.facts["pid"] == pid
    line = begun(served)
    assert b"200" in line.recv(15)
    os.kill(pid, signal.SIGSTOP)
    served.clock.ahead += limit * 1.1
    facts = b""
    while not facts.endswith(b"0\r\n\r\n"):
        facts += line.recv(65536)
    # the clock is set ahead for the request's own limit, too: whichever looks first ends the text
    assert any(end in facts for end in (b"engine_unavailable", b'"code":"timeout"', b"[DONE]"))
    assert served.becomes(lambda: (served.engine.facts or {}).get("pid", pid) != pid and healthy(), seconds=240)
    assert ask(max_tokens=2).status_code == 200


def test_an_engine_that_says_nothing_while_loading_is_ended(settings):
    silent = replace(settings, limits=replace(settings.limits, watchdog=0.001))

    async def start() -> None:
        engine = EngineProcess(silent, Metrics("x"))
        try:
            await engine.start()
        finally:
            await engine.stop()

    with pytest.raises(ValueError, match="said nothing"):
        asyncio.run(start())


def test_maps_take_places_in_the_queue_and_who_hangs_up_leaves_them(served, ask):
    assert served.becomes(lambda: served.counts() == (0, 0))
    body = json.dumps({"messages": [{"role": "user", "content": "the fox"}]}).encode()
    head = f"POST /v1/depth/map HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    host, port = served.url.removeprefix("http://").split(":")
    with frozen(served):
        lines = [socket.create_connection((host, int(port)), timeout=60) for _ in range(12)]
        for line in lines:
            line.sendall(f"{head}\r\n\r\n".encode() + body)
        assert served.becomes(lambda: served.places() == 12)
        assert ask(max_tokens=1).status_code == 429
        more = httpx.post(f"{served.url}/v1/depth/map", content=body, headers={"Content-Type": "application/json"})
        assert more.status_code == 429
        for line in lines[1:]:
            line.close()
        assert served.becomes(lambda: served.places() == 1)
    assert lines[0].recv(15) == b"HTTP/1.1 200 OK"
    lines[0].close()
    assert served.becomes(lambda: served.places() == 0 and served.counts() == (0, 0))


def test_what_cannot_be_loaded_says_why_in_one_line(settings, tmp_path):
    nothing = replace(settings, engine=replace(settings.engine, model=str(tmp_path / "nothing")))

    async def start() -> None:
        engine = EngineProcess(nothing, Metrics("x"))
        try:
            await engine.start()
        finally:
            await engine.stop()

    with pytest.raises(ValueError, match="nothing") as caught:
        asyncio.run(start())
    assert "\n" not in str(caught.value)
