"""Depth maps that wait for the engine's model, made a stage at a time between two steps.

Maps get at most half of the time while texts are generated: after a stage the engine has as long for itself. This file
is *not* about how a map is made (`map_export`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any

Stages = Generator[None, None, str]
"""Yields between two stages; its value is the finished map."""


class MapQueue:
    """First come, first served. clock: seconds."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._waiting: deque[tuple[int, Stages]] = deque()
        self._after = -float("inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, id: int, stages: Stages) -> None:
        self._waiting.append((id, stages))

    def cancel(self, id: int) -> None:
        """Drop a map, whether or not it was begun."""
        for entry in [pair for pair in self._waiting if pair[0] == id]:
            self._waiting.remove(entry)
            entry[1].close()

    def due(self, idle: bool) -> bool:
        """Is a stage to run now? idle: nothing is generated meanwhile."""
        return bool(self._waiting) and (idle or self._clock() >= self._after)

    def run(self) -> tuple[int, Any] | None:
        """One stage of the first map. Its id and what came of it, a text or an exception, once it is done."""
        start = self._clock()
        id, stages = self._waiting[0]
        try:
            next(stages)
            return None
        except StopIteration as done:
            result = done.value
        except Exception as error:
            result = error
        finally:
            now = self._clock()
            self._after = now + (now - start)
        self._waiting.popleft()
        return id, result
