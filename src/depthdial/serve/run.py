"""Run the server: load first, then open the port, and drain when told to stop."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket

import uvicorn
from fastapi import FastAPI

from depthdial.serve import log_lines
from depthdial.serve.app import make_app
from depthdial.serve.door import Doors, open_files
from depthdial.serve.engine_process import EngineProcess
from depthdial.serve.metrics import Metrics
from depthdial.serve.settings import ServerSettings


def run(settings: ServerSettings, host: str, port: int, say=print) -> None:
    """Serve until SIGTERM or an interrupt; what is being generated then is finished, nothing new is taken.

    port: 0 takes any that is free. say: gets the line that tells where. Raises ValueError for what cannot be loaded
    and OSError for a port that is taken, both before anything is served.
    """
    log_lines.start("depthdial")
    with bind(host, port) as listener:
        asyncio.run(_serve(settings, listener, host, say))


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address. OSError with the address where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with its protocol named, or asyncio would not set TCP_NODELAY, and each token wait for the last one's receipt
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))  # nobody may connect before the model is there
    except OSError as error:
        listener.close()
        reason = "the port is taken; choose another with --port" if error.errno == errno.EADDRINUSE else error.strerror
        raise OSError(error.errno, reason, f"{host}:{port}") from None
    return listener


def config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn runs the app: quiet, with limits, and long enough in stopping for the longest answer."""
    doors = Doors(settings.limits, open_files())
    return uvicorn.Config(
        app,
        http=doors.protocol,  # type: ignore[arg-type]  # a factory does, too
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(settings.limits.timeout) + 10,
        h11_max_incomplete_event_size=65536,
        backlog=doors.backlog,
    )


async def _serve(settings: ServerSettings, listener: socket.socket, host: str, say) -> None:
    engine = EngineProcess(settings, Metrics(settings.name))
    await engine.start()
    app = make_app(settings, engine)
    server = uvicorn.Server(config(app, settings))
    # uvicorn stops and drains on these, once it is there, and raises them again when all is done
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: setattr(server, "should_exit", True))
    listener.listen(server.config.backlog)  # who reads the next line may connect at once
    port = listener.getsockname()[1]
    place = f"[{host}]" if ":" in host else host
    say(f"depthdial serves {settings.name} at http://{place}:{port}  (page: /   API: /v1   figures: /metrics)")
    try:
        await server.serve(sockets=[listener])
    finally:
        await engine.stop()
