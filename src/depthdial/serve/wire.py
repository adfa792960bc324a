"""Messages between the front and the engine's process: JSON objects behind their length, over a pair of sockets.

JSON and not pickle: whatever comes over it, nothing is executed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from threading import Lock
from typing import Any

Message = dict[str, Any]
_LENGTH = struct.Struct(">I")


def encode_message(message: Message) -> bytes:
    """A message as bytes, its length first. nan and inf are refused: JSON has none."""
    body = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


class Wire:
    """The engine's end, for blocking calls; several threads may send."""

    def __init__(self, end: socket.socket):
        self._socket, self._file, self._lock = end, end.makefile("rb"), Lock()

    def send(self, message: Message) -> None:
        """OSError once the other end is gone."""
        data = encode_message(message)
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> Message | None:
        """The next message; None once the other end is gone."""
        head = self._file.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack(head)
        body = self._file.read(size)
        return json.loads(body) if len(body) == size else None


class AsyncWire:
    """The front's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> AsyncWire:
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: Message) -> None:
        """Queue a message; one for an engine that is gone is dropped, its end is told by `receive`."""
        if not self._writer.is_closing():
            self._writer.write(encode_message(message))

    async def receive(self) -> Message | None:
        """The next message; None once the other end is gone."""
        try:
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return json.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        self._writer.close()
