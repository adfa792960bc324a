"""The front's side of the engine: starts its process, and again when it dies or hangs, and hands out what it says.

While it loads the process says every second that it does; later it answers pings between two steps. One that says
nothing for `Limits.watchdog` seconds is killed, and another started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from time import monotonic

from depthdial.serve.fit import RefusedOrder
from depthdial.serve.generation import Busy, Delta, EngineDown, FailedOrder, Generation, Token
from depthdial.serve.metrics import Metrics
from depthdial.serve.settings import ServerSettings
from depthdial.serve.wire import AsyncWire, Message

log = logging.getLogger(__name__)

PAUSES = (0.1, 0.5, 2.0, 5.0, 15.0, 30.0)
"""Seconds before each new start of an engine that does not stay."""
PINGS = 1.0
"""Seconds between two pings."""
LOADING = 10.0
"""How many times as long as later a process may be silent while it loads: it says nothing before all is imported."""


class EngineProcess:
    """Starts the engine's process and keeps it running. `start` first, `stop` at the end. clock: seconds."""

    def __init__(self, settings: ServerSettings, metrics: Metrics, clock: Callable[[], float] = monotonic):
        self.settings, self.metrics, self._clock = settings, metrics, clock
        self.facts: Message | None = None
        """What the engine said of itself; None while there is none."""
        self._ids = count(1)
        self._open: dict[int, Generation] = {}
        self._maps: dict[int, asyncio.Future[str]] = {}
        self._wire: AsyncWire | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._last_sign = 0.0
        """When the engine last said something."""

    @property
    def texts(self) -> int:
        """Texts that are generated or wait."""
        return sum(generation.open for generation in self._open.values())

    @property
    def places(self) -> int:
        """Places taken of those that `Limits` gives: a map takes one, too."""
        return self.texts + len(self._maps)

    @property
    def stalled(self) -> bool:
        """Is the engine there, but silent for so long that it may hang?"""
        return self.facts is not None and self._clock() - self._last_sign > self.settings.limits.watchdog / 2

    async def start(self) -> None:
        """Come back when the engine is ready. ValueError, one line, for what it cannot load."""
        await self._launch()
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Hang up: the process ends by itself."""
        for task in self._tasks:
            task.cancel()
        if self._wire is not None:
            self._wire.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), 10)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    def generate(self, order: Message, choices: int) -> Generation:
        """Send an order (see `Worker`). Raises EngineDown, or Busy where too many texts wait."""
        wire = self._up(choices)
        generation = Generation(next(self._ids), choices, self.forget)
        self._open[generation.id] = generation
        wire.send({"op": "generate", "id": generation.id, **order})
        return generation

    async def map(self, order: Message) -> str:
        """A depth map made by the engine's model; see `map_export`. To cancel the call cancels the map. Raises Busy,
        Refused, Failed or EngineDown."""
        wire, id = self._up(1), next(self._ids)
        future = self._maps[id] = asyncio.get_running_loop().create_future()
        try:
            wire.send({"op": "map", "id": id, **order})
            return await future
        finally:
            del self._maps[id]
            if not future.done() or future.cancelled():
                wire.send({"op": "cancel", "id": id})

    def forget(self, generation: Generation) -> None:
        """Drop a generation; the engine is told if it still works on it."""
        if self._open.pop(generation.id, None) is not None and self._wire is not None:
            self.metrics.on_cancel(generation)
            self._wire.send({"op": "cancel", "id": generation.id})

    def look(self) -> None:
        """Ask the engine for a sign of life; kill one that gave none for too long, so that another is started."""
        if self.facts is None or self._wire is None or self._process is None:
            return
        if (silent := self._clock() - self._last_sign) > self.settings.limits.watchdog:
            log.error("the engine's process has said nothing for %.0f seconds; killing it", silent)
            self._kill()
        else:
            self._wire.send({"op": "ping"})

    def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            self._process.kill()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(PINGS, self.settings.limits.watchdog / 8))
            self.look()

    def _up(self, places: int) -> AsyncWire:
        """The wire, for an order that takes so many places."""
        if self.facts is None or self._wire is None:
            raise EngineDown
        if self.places + places > self.settings.engine.max_batch + self.settings.limits.max_queue:
            raise Busy
        return self._wire

    async def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "depthdial.serve.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # whatever a library prints is for the operator
            )
        wire = self._wire = await AsyncWire.over(ours)
        settings = self.settings
        most = settings.limits.max_prompt_tokens
        wire.send({"engine": asdict(settings.engine), "name": settings.name, "max_prompt_tokens": most})
        message: Message | None = {"loading": True}
        patience = LOADING * settings.limits.watchdog
        while message is not None and "loading" in message:
            try:
                message = await asyncio.wait_for(wire.receive(), patience)
            except TimeoutError:
                self._kill()
                await self._process.wait()
                silent = f"the engine's process said nothing for {patience:g} seconds while loading"
                raise ValueError(silent) from None
        if message is None:
            raise ValueError(f"the engine's process ended with code {await self._process.wait()} while loading")
        if "failed" in message:
            raise ValueError(message["failed"])
        self.facts, self._last_sign = message["ready"], self._clock()
        self.metrics.on_load(message["ready"])

    async def _keep(self) -> None:
        """Read what the engine says; when it is gone, tell all who wait for it, and start another."""
        tries = 0
        while True:
            began = monotonic()
            assert self._process is not None
            try:
                await self._listen()
            except Exception:  # what it says makes no sense: better another one than a front that hears nothing
                log.exception("the engine's process is not understood")
                self._kill()
            self._drop_all()
            log.error("the engine's process ended with code %s; starting another", await self._process.wait())
            if monotonic() - began > PAUSES[-1]:
                tries = 0
            while self.facts is None:
                await asyncio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
                tries += 1
                try:
                    await self._launch()
                except (ValueError, OSError) as error:
                    log.error("the engine does not start: %s", error)

    async def _listen(self) -> None:
        assert self._wire is not None
        while (message := await self._wire.receive()) is not None:
            self._hear(message)

    def _drop_all(self) -> None:
        self.facts = None
        self.metrics.on_loss()
        if self._wire is not None:
            self._wire.close()
        for generation in list(self._open.values()):
            generation.inbox.put_nowait(EngineDown())
        self._open.clear()
        for future in self._maps.values():
            if not future.done():
                future.set_exception(EngineDown())

    def _hear(self, message: Message) -> None:
        self._last_sign = self._clock()
        for entry in message.get("tokens", ()):
            generation = self._open.get(entry[0])
            if generation is not None:
                part = Delta(entry[1], [Token(*token) for token in entry[2]], *entry[3:])
                generation.open -= part.finish is not None
                self.metrics.on_tokens(generation, part)
                generation.inbox.put_nowait(part)
        for end in message.get("ended", ()):
            generation = self._open.pop(end["done"], None)
            if generation is not None:
                self.metrics.on_end(generation, end)
                generation.inbox.put_nowait(end)
        if "accepted" in message and (generation := self._open.get(message["accepted"])) is not None:
            generation.inbox.put_nowait(message)
        if "counts" in message:
            self.metrics.counts(message["counts"])
        if "map" in message:
            self._finish_map(message["map"], message["data"])
        if "refused" in message:
            self._end(message["refused"], RefusedOrder(message["why"], message.get("param"), message.get("code")))
        if "failed_order" in message:
            self._end(message["failed_order"], FailedOrder())

    def _end(self, id: int, why: Exception) -> None:
        if (generation := self._open.pop(id, None)) is not None:
            generation.inbox.put_nowait(why)
        self._finish_map(id, why)

    def _finish_map(self, id: int, result: str | Exception) -> None:
        future = self._maps.get(id)
        if future is None or future.done():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
