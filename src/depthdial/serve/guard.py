"""What every request passes first: its size, its kind and the time it takes, the API key, and headers for browsers.

Plain ASGI around the app, so that nothing of a body that is too large or too slow is ever parsed. HEAD is answered
wherever GET is. `Door` looks after connections.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from depthdial.serve.errors import answer
from depthdial.serve.metrics import Metrics
from depthdial.serve.settings import ServerSettings

log = logging.getLogger(__name__)

GRACE = 15.0
"""Seconds beyond `Limits.timeout` in which a slow client may still read its answer."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class TooLarge(Exception):
    """The body has more bytes than the server takes."""


def unreadable(headers: Headers) -> str | None:
    """Why a body of these headers is not read; None where it is."""
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        return f"the body has the content encoding {coding[:50]!r}; send it as it is"
    kind, *parameters = (part.strip().lower() for part in headers.get("content-type", "").split(";"))
    if kind and not re.fullmatch(r"application/([^/]+\+)?json", kind):
        return f"the body is {kind[:50]!r}; send JSON, as application/json"
    charset = next((part.removeprefix("charset=").strip('"') for part in parameters if part.startswith("charset=")), "")
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        return f"the body is in {charset[:50]!r}; send UTF-8"
    return None


class Guard:
    """ASGI middleware; see the file's first line."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics):
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if message["status"] >= 400:
                    self.metrics.on_error(message["status"])
            await send(message)

        headers = Headers(scope=scope)
        if scope["method"] == "HEAD":  # the server leaves the body out, since it knows the scope as it came
            scope = {**scope, "method": "GET"}
        if not self._may(scope["path"], headers):
            response = answer(401, "this server wants an API key: Authorization: Bearer KEY", code="invalid_api_key")
            await response(scope, receive, send_dressed)
            return
        try:
            body = await self._body(headers, receive)
        except TooLarge:
            most = self.settings.limits.max_body
            response = answer(413, f"the request has more than the {most} bytes that this server takes")
            response.headers["Connection"] = "close"  # the rest of it is not read
            await response(scope, receive, send_dressed)
            return
        except TimeoutError:
            response = answer(408, "the request did not arrive in time")
            response.headers["Connection"] = "close"
            await response(scope, receive, send_dressed)
            return
        if body is None:
            return
        if scope["method"] == "POST" and scope["path"].startswith("/v1") and (why := unreadable(headers)):
            await answer(415, why)(scope, receive, send_dressed)
            return
        replay_done = False

        async def replay() -> Message:
            nonlocal replay_done
            if replay_done:
                return await receive()  # what is left to come is the disconnect
            replay_done = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            async with asyncio.timeout(self.settings.limits.timeout + GRACE):
                await self.app(scope, replay, send_dressed)
        except TimeoutError:  # the app's own limit is shorter: what is left is a client that does not read
            log.info("a client does not read its answer; its connection was cut")

    def _may(self, path: str, headers: Headers) -> bool:
        key = self.settings.api_key
        if key is None or not path.startswith("/v1"):
            return True
        token = re.sub(r"^bearer +", "", headers.get("authorization", ""), flags=re.IGNORECASE)
        return hmac.compare_digest(token.encode(), key.encode())  # takes as long for a wrong key as for a right one

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None if the client is gone. Raises TooLarge or TimeoutError."""
        limits = self.settings.limits
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limits.max_body:
            raise TooLarge
        parts, size = [], 0
        async with asyncio.timeout(limits.body_timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limits.max_body:
                    raise TooLarge
                if not message.get("more_body", False):
                    return b"".join(parts)
