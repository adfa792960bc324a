"""Progress that people can read in a terminal and in a log file: loss, depth, tokens per second, time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """One line per update on stderr: rewritten in place on a terminal, every ten seconds in a log."""

    def __init__(self, what: str, steps: int, step: int = 0):
        self.what, self.steps, self.step = what, steps, step
        self.first, self.tokens = step, 0
        self.start = self.last = time.monotonic()
        self.live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self.live:
            sys.stderr.write("\n")

    def advance(self, tokens: int, steps: int = 1, /, **figures: float) -> None:
        """Count `steps` more steps of `tokens` tokens in all and show the figures."""
        self.step += steps
        self.tokens += tokens
        now = time.monotonic()
        if self.step < self.steps and now - self.last < (0.2 if self.live else 10.0):
            return
        self.last = now
        seconds = max(now - self.start, 1e-6)
        remaining = seconds / max(self.step - self.first, 1) * (self.steps - self.step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        speed = f"{self.tokens / seconds:.0f} tokens/s  {_clock(remaining)} left"
        line = f"{self.what}  {self.step}/{self.steps}  {text}  {speed}"
        sys.stderr.write(f"\r\x1b[2K{line}" if self.live else f"{line}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
