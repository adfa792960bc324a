"""What comes in and goes out of a terminal: arguments, standard input and output in any encoding, or closed.

Nothing that a model wrote is cut off because a terminal cannot show it: such characters are written as escapes.
"""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import select
import sys
from collections.abc import Sequence

from depthdial.core.printable import printable_lines

_STRICT = ("strict", "surrogateescape")


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def settle() -> None:
    """Make standard output and error bear any text, and be there; what is logged, too."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        null = os.open(os.devnull, os.O_RDWR)  # or a file that is opened next would be the standard output of all
        while null < 3:
            null = os.dup(null)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in _STRICT:
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine("%(message)s"))


def log(quiet: bool = False) -> None:
    """Show what is logged on standard error, a message a line; quiet: errors alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(level=logging.ERROR if quiet else logging.INFO, handlers=[handler])


def arguments(args: Sequence[str]) -> list[str]:
    """The arguments as text: UTF-8, where the locale did not know it. ValueError for one that is no text."""
    return [_argument(argument, place) for place, argument in enumerate(args, 1)]


def _argument(argument: str, place: int) -> str:
    try:
        argument.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode("utf-8")
        except UnicodeError:
            raise ValueError(f"argument {place} is not UTF-8 text: {argument!a}; convert it to UTF-8") from None
    return argument


def read_input() -> str:
    """All of standard input, less a byte order mark and the last line break. ValueError where it is closed or is no
    text in the terminal's encoding (UTF-8 where that is ASCII)."""
    encoding = open_input("strict")
    try:
        return sys.stdin.read().removeprefix("\ufeff").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not {encoding} text ({error.reason}, byte {error.start}); convert it to UTF-8"
        ) from None


def open_input(errors: str) -> str:
    """Make standard input ready to be read, and give its encoding. ValueError where it is closed."""
    if sys.stdin is None:
        raise ValueError("standard input is closed; type the text, pipe it in, or give it as an argument")
    encoding = sys.stdin.encoding or "utf-8"
    if codecs.lookup(encoding).name == "ascii":
        encoding = "utf-8"
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=encoding, errors=errors)
    return encoding


def finish(code: int) -> int:
    """Write out what standard output still holds; gives the exit code. A reader that went away has what it wanted; a
    disk that is full has not."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_gone(code)
    except OSError as error:
        _silence()
        remedy = "; free some space and try again" if error.errno == errno.ENOSPC else ""
        print(f"depthdial: error: standard output: {error.strerror}{remedy}", file=sys.stderr)
        return code or 2
    return code


def reader_gone(code: int) -> int:
    """The exit code where standard output (0 then: `| head` has enough) or error (2: the work was broken off) has no
    reader any more. Nothing is written to them from here on."""
    poll = select.poll()
    poll.register(2, 0)  # what has no reader is reported unasked
    broken = any(event & select.POLLERR for _, event in poll.poll(0))
    _silence()
    return code or (2 if broken else 0)


def _silence() -> None:
    """Send standard output to nowhere: Python flushes it once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
