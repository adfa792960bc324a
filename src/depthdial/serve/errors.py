"""Errors as the OpenAI API writes them: what went wrong, and nothing of the machine it went wrong on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from depthdial.serve.fit import RefusedOrder
from depthdial.serve.generation import Busy, EngineDown, FailedOrder

log = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY = {429: "1", 503: "2"}
"""Seconds after which to ask again."""


def body_of(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    safe = message.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    return {"error": {"message": safe, "type": kind, "param": param, "code": code}}


def answer(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error as a response."""
    headers = {"Retry-After": RETRY[status]} if status in RETRY else None
    return JSONResponse(body_of(status, message, param, code), status, headers)


def of_exception(error: Exception) -> tuple[int, str, str | None, str | None]:
    """Status, message, parameter and code of what the engine's side may raise."""
    match error:
        case RefusedOrder():
            return 400, str(error), error.param, error.code
        case Busy():
            return 429, "too many requests wait; try again in a moment", None, "queue_full"
        case EngineDown():
            return 503, "the engine is starting; try again in a moment", None, "engine_unavailable"
        case TimeoutError():
            return 504, "the request took longer than this server allows", None, "timeout"
        case FailedOrder():
            return 500, "the engine failed on this request", None, "engine_failed"
    log.error("a request failed", exc_info=error)
    return 500, "something went wrong; the server's log says what", None, None


def install(app: FastAPI) -> None:
    """Every error of an app in one shape."""

    async def engine_error(_: Request, error: Exception) -> JSONResponse:
        return answer(*of_exception(error))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(400, *first_error(error.errors()))

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        response = answer(error.status_code, str(error.detail))
        for name, value in (error.headers or {}).items():
            # `Guard` answers HEAD wherever GET is
            response.headers[name] = "GET, HEAD" if name.lower() == "allow" and "GET" in value else value
        return response

    for kind in (RefusedOrder, Busy, EngineDown, FailedOrder, TimeoutError, Exception):
        app.add_exception_handler(kind, engine_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def first_error(errors: Sequence[Any]) -> tuple[str, str | None]:
    """Message and parameter of the first thing wrong with a request. What was sent is not repeated."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON", None
    path = ".".join(str(part) for part in first["loc"][1:])[:100] or first.get("ctx", {}).get("param")
    text = str(first["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    if first["type"] == "extra_forbidden":
        return f"unknown field {path!r}; this server knows no such thing", path
    if path is None:
        if first["type"] in ("missing", "model_attributes_type"):
            return "the body must be a JSON object, sent as application/json", None
        return text, None
    return f"{path}: {'it must be given' if first['type'] == 'missing' else text}", path
