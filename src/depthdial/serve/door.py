"""Connections: how many there may be, how long one may take to say what it wants, and what a half-closed one gets.

A `Door` stands between asyncio and uvicorn's protocol of one connection and passes everything on to it. uvicorn itself
limits neither the time to a request's first byte, nor that to the end of its headers, nor connections that ask nothing;
and it hangs up on a client that only said that it sends no more. Bodies and answers are limited by `Guard`.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from depthdial.serve.errors import body_of
from depthdial.serve.settings import RequestLimits

OWN_FILES = 64
"""Descriptors that are left for what is no connection."""
PROBE = 1.0
"""Seconds between two looks at whether a client that half closed its connection is still there."""


def open_files() -> int:
    """How many files this process may have open, raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    return 65536 if soft == resource.RLIM_INFINITY else soft


class Doors:
    """All connections of one server. files: descriptors that the process may have."""

    def __init__(self, limits: RequestLimits, files: int):
        self.header_timeout = limits.header_timeout
        self.backlog = max(1, min(2048, files // 8))
        """Connections that are accepted at once: asyncio makes so many before any can be looked at."""
        # those that were just ended, and those that are just coming, have descriptors, too
        self.most = max(1, min(limits.max_connections, files - OWN_FILES - 3 * self.backlog))
        self._open: dict[Door, None] = {}

    def protocol(self, **of: Any) -> Door:
        """What uvicorn takes for its protocol."""
        return Door(self, H11Protocol(**of))

    def enter(self, door: Door) -> bool:
        """Is there room for one more? If not, the oldest that is still to say what it wants gives way."""
        if len(self._open) >= self.most:
            oldest = next((other for other in self._open if other.asking), None)
            if oldest is None:
                return False
            oldest.end()
        self._open[door] = None
        return True

    def leave(self, door: Door) -> None:
        self._open.pop(door, None)


class Door(asyncio.Protocol):
    """One connection."""

    def __init__(self, doors: Doors, inner: H11Protocol):
        self._doors, self._inner = doors, inner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def asking(self) -> bool:
        """Is no request of it complete, that is not answered yet?"""
        conn = self._inner.conn
        return conn.their_state in (h11.IDLE, h11.SEND_BODY) and conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    def end(self) -> None:
        """End it at once."""
        self._doors.leave(self)
        self._set(None)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)
        if self._doors.enter(self):
            self._set(self._too_slow, self._doors.header_timeout)
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)
        if self._inner.conn.their_state is not h11.IDLE:
            self._set(None)
        elif self._timer is None:  # the next request has begun
            self._set(self._too_slow, self._doors.header_timeout)

    def eof_received(self) -> bool:
        """The client sends no more. Where it waits for an answer it gets that, and the connection ends with it."""
        inner = self._inner
        if inner.cycle is None or inner.cycle.response_complete or inner.conn.their_state is h11.SEND_BODY:
            return False
        if not inner.conn.trailing_data[0]:
            inner.shutdown()  # which is after the answer
        self._set(self._probe, PROBE)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.leave(self)
        self._set(None)
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _set(self, what: Callable[[], None] | None, seconds: float = 0.0) -> None:
        """What is to be done after so many seconds, in place of what was."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if what is None else self._inner.loop.call_later(seconds, what)

    def _too_slow(self) -> None:
        assert self._transport is not None
        body = json.dumps(body_of(408, "the request's headers did not arrive in time")).encode()
        head = f"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._transport.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
        self._transport.close()

    def _probe(self) -> None:
        """Who closes a connection and who half closes it look the same, until something is sent: to one that is gone
        the second attempt fails. Before the answer begins HTTP/1.1 lets an empty one be sent."""
        assert self._transport is not None
        if self._transport.is_closing() or self._inner.conn.our_state is not h11.SEND_RESPONSE:
            return
        if self._inner.scope["http_version"] == "1.1":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._set(self._probe, PROBE)
