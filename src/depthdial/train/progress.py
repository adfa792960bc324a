"""Progress that people can read in a terminal and in a log file: loss, depth, tokens per second, time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """One line per update on stderr: rewritten in place on a terminal, every ten seconds in a log."""

    def __init__(self, what: str, steps: int, done: int = 0):
        self.what, self.steps, self.done = what, steps, done
        self.first, self.tokens = done, 0
        self.begun = self.last = time.monotonic()
        self.live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self.live:
            sys.stderr.write("\n")

    def advance(self, tokens: int, steps: int = 1, /, **figures: float) -> None:
        """Count `steps` more steps of `tokens` tokens in all and show the figures."""
        self.done += steps
        self.tokens += tokens
        now = time.monotonic()
        if self.done < self.steps and now - self.last < (0.2 if self.live else 10.0):
            return
        self.last = now
        spent = max(now - self.begun, 1e-6)
        left = spent / max(self.done - self.first, 1) * (self.steps - self.done)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        speed = f"{self.tokens / spent:.0f} tokens/s  {_clock(left)} left"
        line = f"{self.what}  {self.done}/{self.steps}  {shown}  {speed}"
        sys.stderr.write(f"\r\x1b[2K{line}" if self.live else f"{line}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
