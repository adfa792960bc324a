"""Work that pauses deep inside, where it cannot yield: it runs in a thread of its own, that goes on only while the one
who asked for it waits. So it needs no locks, and nothing runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from threading import Semaphore, Thread
from typing import Any

Pause = Callable[[], None]


class _Closing(BaseException):
    """Nobody wants the result any more."""


def in_turns(work: Callable[[Pause], Any]) -> Generator[None, None, Any]:
    """Yields wherever the work calls what it is given; its value is the work's, and what the work raises is raised. To
    close it ends the work at its next pause."""
    turn, back = Semaphore(0), Semaphore(0)
    outcome: list[Any] = []
    closed = False

    def pause() -> None:
        back.release()
        turn.acquire()
        if closed:
            raise _Closing

    def run() -> None:
        turn.acquire()
        try:
            outcome.append((work(pause), None))
        except BaseException as error:  # whatever it is: the other thread waits
            outcome.append((None, error))
        back.release()

    thread = Thread(target=run, name="in turns", daemon=True)
    thread.start()
    try:
        while True:
            turn.release()
            back.acquire()
            if outcome:
                result, error = outcome[0]
                if error is not None:
                    raise error
                return result
            yield
    finally:
        closed = True
        if not outcome:
            turn.release()
        thread.join()
