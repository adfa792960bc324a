"""A real server on a tiny model: sockets on the loopback, an engine in its own process; one for all tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Thread
from time import monotonic
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from depthdial.serve.app import make_app
from depthdial.serve.engine_process import EngineProcess
from depthdial.serve.metrics import Metrics
from depthdial.serve.run import bind, config
from depthdial.serve.settings import EngineSettings, RequestLimits, ServerSettings

KEY = "opensesame"


class Clock:
    """The engine's, which may be set ahead."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead


@dataclass
class Served:
    """Three apps over one engine: `url` is generous, `strict` wants a key and has no time, `narrow` has eight
    connections."""

    engine: EngineProcess
    clock: Clock
    loop: asyncio.AbstractEventLoop
    url: str
    strict: str
    narrow: str

    @property
    def name(self) -> str:
        return self.engine.settings.name

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def texts(self) -> int:
        """Texts that the front waits for."""

        async def told() -> int:
            return self.engine.texts

        return asyncio.run_coroutine_threadsafe(told(), self.loop).result(60)

    def places(self) -> int:
        """Places that are taken, by texts and maps."""

        async def told() -> int:
            return self.engine.places

        return asyncio.run_coroutine_threadsafe(told(), self.loop).result(60)

    def counts(self) -> tuple[float, float]:
        """Texts that run and that wait, as /metrics says it."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        told = {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests")}
        return told["vllm:num_requests_running"], told["vllm:num_requests_waiting"]

    def becomes(self, wanted: Callable[[], bool], seconds: float = 20) -> bool:
        """Does it come true? Asked again as long as the server has something to say."""
        deadline = self.loop.time() + seconds
        while not wanted():
            if self.loop.time() > deadline:
                return False
        return True


@pytest.fixture(scope="session")
def settings(tiny_folder, tiny_plugin) -> ServerSettings:
    engine = EngineSettings(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu", max_batch=4)
    return ServerSettings(engine, RequestLimits(max_queue=8, max_body=20_000, max_tokens=100, timeout=60))


@pytest.fixture(scope="session")
def served(settings: ServerSettings) -> Iterator[Served]:
    process: Future[Served] = Future()
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        engine = EngineProcess(settings, Metrics(settings.name), clock := Clock())
        await engine.start()
        limits = replace(settings.limits, timeout=0.4, body_timeout=0.4, header_timeout=0.4)
        strict = replace(settings, limits=limits, api_key=KEY, cors_origins=("https://example.org",))
        narrow = replace(settings, limits=replace(settings.limits, max_connections=8))
        listeners = [bind("127.0.0.1", 0) for _ in range(3)]
        for listener in listeners:
            listener.listen()
        urls = [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
        for of in (settings, strict, narrow):
            servers.append(uvicorn.Server(config(make_app(of, engine), of)))
        process.set_result(Served(engine, clock, asyncio.get_running_loop(), *urls))
        await asyncio.gather(*(s.serve(sockets=[at]) for s, at in zip(servers, listeners, strict=True)))
        await engine.stop()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if not process.done():
                process.set_exception(error)
            raise

    thread = Thread(target=run, daemon=True)
    thread.start()
    yield process.result(timeout=300)
    for server in servers:
        server.should_exit = True
    thread.join(60)


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    """The official client, unchanged."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=60)


@pytest.fixture
def ask(served: Served) -> Callable[..., httpx.Response]:
    """`ask(prompt, **fields)`: POST /v1/completions, for what the official client would not send."""

    def post(prompt: Any = "the quick", path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        body = {"model": served.name, "prompt": prompt, **fields}
        return httpx.post(served.url + path, json=body, timeout=60)

    return post
