"""What the schema at /openapi.json says of answers, so that it can be tested against them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

OBJECT: dict[str, Any] = {"type": "object"}


def _json(description: str, schema: dict[str, Any] = OBJECT) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _of(name: str, *required: str) -> dict[str, Any]:
    kinds = {"choices": {"type": "array"}, "data": {"type": "array"}, "usage": OBJECT, "id": {"type": "string"}}
    fields = {field: kinds.get(field, {}) for field in required}
    return {"type": "object", "required": list(required), "properties": {**fields, "object": {"const": name}}}


ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_DESCRIPTIONS = {
    400: "the request cannot be done, and why",
    401: "no API key, or a wrong one",
    404: "no such model",
    408: "the request did not arrive in time",
    413: "the request is too large",
    415: "the request is no plain JSON",
    429: "too many requests wait; see Retry-After",
    503: "the engine is starting; see Retry-After",
    504: "the answer took too long",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _json(_DESCRIPTIONS[status], ERROR) for status in statuses}


def _answers(name: str) -> dict[int | str, dict[str, Any]]:
    good = _json("The answer; with `stream` a stream of server-sent events.", _of(name, "id", "choices", "usage"))
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    good["content"]["text/event-stream"] = {"schema": event}  # of each event
    return {200: good, **_errors(*_DESCRIPTIONS)}


CHAT = _answers("chat.completion")
COMPLETION = _answers("text_completion")
MODELS: dict[int | str, dict[str, Any]] = {200: _json("A list of one.", _of("list", "data")), **_errors(401, 503)}
MODEL: dict[int | str, dict[str, Any]] = {200: _json("The model.", _of("model", "id")), **_errors(401, 404, 503)}
HEALTH: dict[int | str, dict[str, Any]] = {
    status: _json(text) for status, text in ((200, "The engine is there."), (503, "It is starting."))
}
TEXT: dict[int | str, dict[str, Any]] = {200: {"description": "Text.", "content": {"text/plain": {}}}}
MAP: dict[int | str, dict[str, Any]] = {
    200: {"description": "A page, or a Parquet file.", "content": {"text/html": {}, "application/octet-stream": {}}},
    **_errors(*_DESCRIPTIONS),
}


def tidy(app: FastAPI) -> None:
    """FastAPI writes its own 422 into the schema; ours is 400."""

    def schema_of() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = schema_of
