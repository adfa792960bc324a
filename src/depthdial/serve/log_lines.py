"""Keep a log from being flooded: of lines from one place in the code a few a minute are enough."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from time import monotonic

MOST, SECONDS = 20, 60.0


class Sparing(logging.Filter):
    """Lets `MOST` records of each place in the code pass in `SECONDS`; the last says that more are left out."""

    def __init__(self, clock: Callable[[], float] = monotonic):
        super().__init__()
        self._clock, self._until = clock, -float("inf")
        self._counts: Counter[tuple[str, int]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        if now >= self._until:
            self._counts.clear()
            self._until = now + SECONDS
        place = record.pathname, record.lineno
        self._counts[place] += 1
        if self._counts[place] == MOST:
            record.msg, record.args = f"{record.getMessage()} (more lines like this are left out for a while)", None
        return self._counts[place] <= MOST


def start(name: str) -> None:
    """Log warnings to standard error, sparingly. name: of the process."""
    handler = logging.StreamHandler()
    handler.addFilter(Sparing())
    logging.basicConfig(level=logging.WARNING, format=f"{name}: %(levelname)s %(message)s", handlers=[handler])
