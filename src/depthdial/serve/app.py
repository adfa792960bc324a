"""The web app: routes, and nothing that computes. Give it to any ASGI server; `run` gives it to uvicorn."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response

from depthdial import __version__
from depthdial.serve import errors, map_route, openapi, pages
from depthdial.serve.engine_process import EngineProcess
from depthdial.serve.guard import Guard
from depthdial.serve.schema import DEFAULT_LENGTH, ChatRequest, CompletionRequest
from depthdial.serve.service import Service, params_of
from depthdial.serve.settings import ServerSettings


def make_app(settings: ServerSettings, engine: EngineProcess | None = None) -> FastAPI:
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
    pages.add(app)
    map_route.add(app, service)
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
        newer = body.max_completion_tokens is not None
        length = body.max_completion_tokens if newer else body.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        order = {
            "messages": [message.plain() for message in body.messages],
            "params": params_of(body, length, logprobs),
            "most": service.settings.limits.max_tokens,
            "length": "max_completion_tokens" if newer else "max_tokens",
        }
        return await service.generate("chat", body, order, request)

    @app.post("/v1/completions", responses=openapi.COMPLETION)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one prompt or several."""
        params = params_of(body, body.max_tokens, body.logprobs, body.logprobs if body.echo else None)
        order = {"prompts": body.prompts, "params": params, "most": DEFAULT_LENGTH, "length": "max_tokens"}
        order["echo"] = bool(body.echo)
        return await service.generate("text", body, order, request)

    @app.get("/v1/models", responses=openapi.MODELS)
    async def models() -> Response:
        """The one model this server has."""
        return JSONResponse({"object": "list", "data": [service.model()]})

    @app.get("/v1/models/{name:path}", responses=openapi.MODEL)
    async def model(name: str) -> Response:
        """The model by its name."""
        return service.other(name) or JSONResponse(service.model())

    @app.get("/health", responses=openapi.HEALTH)
    async def health() -> Response:
        """200 while the engine is there and answers, 503 while it is not or does not."""
        status = "starting" if service.engine.facts is None else "stalled" if service.engine.stalled else "ok"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics", responses=openapi.TEXT)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
