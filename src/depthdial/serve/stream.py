"""Send an answer while its client listens: whole, or as server-sent events. Who hangs up frees the engine."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from depthdial.serve.answers import Completion
from depthdial.serve.errors import body_of, of_exception
from depthdial.serve.generation import Generation

log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds beyond the timeout in which a slow client may still read."""


async def whole_answer(request: Request, generation: Generation, answer: Completion, until: float) -> Response:
    """The answer as one object. Raises Failed, EngineDown, or TimeoutError at `until`, a time of the event loop."""

    async def collect() -> None:
        async for part in generation:
            answer.choices[part.choice].add(part)

    try:
        async with asyncio.timeout_at(until):
            if not await while_listening(request.receive, collect()):
                return Response(status_code=499)  # nobody reads it
        return JSONResponse(answer.whole())
    finally:
        generation.close()


class EventStream(Response):
    """Server-sent events, one a chunk, `[DONE]` at the end; an error that comes late is an event, too. until: a time of
    the event loop."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, answer: Completion, usage: bool, until: float):
        self.generation, self.answer, self.usage, self.until = generation, answer, usage, until
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self.until + GRACE):
                await while_listening(receive, self._write(send))
        except TimeoutError:
            log.info("a client reads too slowly; its stream was cut")
        finally:
            self.generation.close()

    async def _write(self, send: Send) -> None:
        async def event(data: dict | str) -> None:
            await send({"type": "http.response.body", "body": _event(data), "more_body": True})

        answer = self.answer
        unknown = {"usage": None} if self.usage else {}  # as OpenAI's chunks have it until the last
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout_at(self.until):
                for chunk in answer.first():
                    await event(chunk | unknown)
                async for part in self.generation:
                    await event(answer.chunk(part) | unknown)
            if self.usage:
                await event(answer.last())
            await event("[DONE]")
        except OSError as error:
            if not isinstance(error, TimeoutError):
                return  # nobody reads it
            await event(_error_body(error))
        except Exception as error:
            await event(_error_body(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _error_body(error: Exception) -> dict:
    return body_of(*of_exception(error))


def _event(data: dict | str) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


async def while_listening(receive: Receive, work: Coroutine[None, None, None]) -> bool:
    """Do the work unless the client hangs up first; was it done? What the work raises is raised."""

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return False
        tasks[0].result()
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
