"""Errors as the OpenAI API writes them: what went wrong, and nothing of the machine it went wrong on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from depthdial.serve.generation import Busy, EngineDown, Failed, Refused

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


def of_exception(error: Exception) -> tuple[int, str, str | None]:
    """Status, message and code of what the engine's side may raise."""
    match error:
        case Refused():
            return 400, str(error), None
        case Busy():
            return 429, "too many requests wait; try again in a moment", "queue_full"
        case EngineDown():
            return 503, "the engine is starting; try again in a moment", "engine_unavailable"
        case TimeoutError():
            return 504, "the request took longer than this server allows", "timeout"
        case Failed():
            return 500, "the engine failed on this request", "engine_failed"
    log.error("a request failed", exc_info=error)
    return 500, "something went wrong; the server's log says what", None


def install(app: FastAPI) -> None:
    """Every error of an app in one shape."""

    async def raised(_: Request, error: Exception) -> JSONResponse:
        status, message, code = of_exception(error)
        return answer(status, message, code=code)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(400, *said(error.errors()))

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return answer(error.status_code, str(error.detail))

    for kind in (Refused, Busy, EngineDown, Failed, TimeoutError, Exception):
        app.add_exception_handler(kind, raised)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def said(errors: Sequence[Any]) -> tuple[str, str | None]:
    """Message and parameter of the first thing wrong with a request. What was sent is not repeated."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON", None
    place = [part for part in first["loc"] if part != "body"]
    path = [str(part) for part in place if isinstance(part, int) or str(part).isidentifier()]
    # behind a field that may be one of several types pydantic names the type it tried
    path = path[:1] if any("[" in str(part) for part in place) or len(place) > 4 else path
    text = str(first["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    if first["type"] == "extra_forbidden":
        return f"unknown field {'.'.join(path)[:100]!r}; this server knows no such thing", ".".join(path)[:100]
    if not path:
        if first["loc"] == ("body",) and first["type"] in ("missing", "model_attributes_type"):
            return "the body must be a JSON object, sent as application/json", None
        return text, None
    return f"{'.'.join(path)}: {text}", ".".join(path)
