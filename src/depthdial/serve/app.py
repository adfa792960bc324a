"""The web app: routes, and nothing that computes. Give it to any ASGI server; `run` gives it to uvicorn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response

from depthdial import __version__
from depthdial.serve import errors, openapi, pages
from depthdial.serve.answers import Answer, Kind
from depthdial.serve.engine_process import EngineProcess
from depthdial.serve.generation import EngineDown, Generation
from depthdial.serve.guard import Guard
from depthdial.serve.metrics import Metrics
from depthdial.serve.schema import ChatRequest, CompletionRequest, Generating
from depthdial.serve.settings import Settings
from depthdial.serve.stream import EventStream, whole


class Service:
    """What the routes share: settings, figures, and the engine's process."""

    def __init__(self, settings: Settings, engine: EngineProcess | None = None):
        self.settings = settings
        self.engine = engine or EngineProcess(settings, Metrics(settings.name))
        self.metrics = self.engine.metrics
        self.since = int(time())

    def facts(self) -> dict[str, Any]:
        """What the engine said of itself. EngineDown while there is none."""
        if self.engine.facts is None:
            raise EngineDown
        return self.engine.facts

    def model(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        facts = self.facts()
        names = ("layers", "always_on", "budget", "floor", "plugin", "chat")
        return {
            "id": self.settings.name,
            "object": "model",
            "created": self.since,
            "owned_by": "depthdial",
            "max_model_len": facts["context"],
            "depth": {name: facts[name] for name in names},
        }

    async def generate(self, kind: Kind, body: Generating, order: dict[str, Any], request: Request) -> Response:
        """Answer one request, whole or streamed."""
        facts, limits = self.facts(), self.settings.limits
        if body.model != self.settings.name:
            return errors.answer(404, f"there is no such model here; this server has {self.settings.name!r}", "model")
        asked = order["params"]["max_tokens"]
        if asked is not None and asked > limits.max_tokens:
            most = f"this server gives at most {limits.max_tokens}"
            return errors.answer(400, f"max_tokens: {asked} is too many; {most}", "max_tokens")
        choices = (body.n or 1) * len(order.get("prompts", [None]))
        if choices > self.settings.engine.max_batch + limits.max_queue:
            return errors.answer(400, f"n: {choices} texts in one request are more than this server queues", "n")
        detailed = bool(body.return_depth)
        generation: Generation = self.engine.generate({**order, "detailed": detailed}, choices)
        until = asyncio.get_running_loop().time() + limits.timeout
        try:
            async with asyncio.timeout_at(until):
                await generation.accepted()
        except BaseException:
            generation.close()
            raise
        logprobs = order["params"]["logprobs"] is not None
        answer = Answer(kind, self.settings.name, generation, logprobs, detailed, facts)
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage) or detailed
            return EventStream(generation, answer, usage, until)
        return await whole(request, generation, answer, until)


def make_app(settings: Settings, engine: EngineProcess | None = None) -> FastAPI:
    """The whole server. Its lifespan starts and stops the engine's process, with ValueError for a model that cannot be
    loaded. engine: one that somebody else starts and stops."""
    service = Service(settings, engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if engine is not None:
            yield
            return
        await service.engine.start()
        try:
            yield
        finally:
            await service.engine.stop()

    app = FastAPI(title="depthdial", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    errors.install(app)
    _add_api(app, service)
    pages.add(app, service.engine, settings.limits)
    openapi.tidy(app)
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    if settings.cors_origins:
        origins = list(settings.cors_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return app


def _add_api(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", responses=openapi.CHAT)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        if not service.facts()["chat"]:
            return errors.answer(400, "this model has no chat template; use /v1/completions", "messages")
        length = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        order = {"messages": [message.plain() for message in body.messages], "params": _params(body, length, logprobs)}
        return await service.generate("chat", body, order, request)

    @app.post("/v1/completions", responses=openapi.COMPLETION)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one prompt or several."""
        length = 16 if body.max_tokens is None else body.max_tokens
        order = {"prompts": body.prompts, "params": _params(body, length, body.logprobs)}
        return await service.generate("text", body, order, request)

    @app.get("/v1/models", responses=openapi.MODELS)
    async def models() -> Response:
        """The one model this server has."""
        return JSONResponse({"object": "list", "data": [service.model()]})

    @app.get("/v1/models/{name:path}", responses=openapi.MODEL)
    async def model(name: str) -> Response:
        """The model by its name."""
        if name != service.settings.name:
            return errors.answer(404, "there is no such model here", "model", "model_not_found")
        return JSONResponse(service.model())

    @app.get("/health", responses=openapi.HEALTH)
    async def health() -> Response:
        """200 while the engine is there, 503 while it is not."""
        up = service.engine.facts is not None
        return JSONResponse({"status": "ok" if up else "starting"}, 200 if up else 503)

    @app.get("/metrics", responses=openapi.TEXT)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _params(body: Generating, length: int | None, logprobs: int | None) -> dict[str, Any]:
    """As `SamplingParams` takes them; OpenAI's defaults, which are not greedy."""
    return {
        "max_tokens": length,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_k": max(body.top_k or 0, 0),
        "seed": None if body.seed is None else body.seed % 2**64,
        "stop": body.stop or None,
        "ignore_eos": bool(body.ignore_eos),
        "n": body.n or 1,
        "logprobs": logprobs,
        "budget": None if body.lossless else body.budget,
        "lossless": bool(body.lossless),
    }
