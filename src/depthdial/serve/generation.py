"""An order on its way through the engine, as the front sees it, and what may become of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any, NamedTuple

from depthdial.serve.wire import Message


class EngineDown(Exception):
    """The engine's process is gone or not there yet. It is being started again."""


class FailedOrder(Exception):
    """The engine could not do what it took on. Why is in its log."""


class Busy(Exception):
    """Too many texts wait."""


class Token(NamedTuple):
    """One generated token as the engine tells it; see `engine.request.Piece`."""

    text: str
    id: int
    depth: int
    cost: float
    layers: str
    """Which layers ran, a bit for each from the first layer on, in hexadecimal; empty: all of them."""


class Delta(NamedTuple):
    """New tokens of one choice."""

    choice: int
    tokens: list[Token]
    logprobs: list[Any] | None
    """Per token (text, bytes, log-probability, the likeliest as [text, bytes, log-probability])."""
    finish: str | None
    echo: list[Any] | None = None
    """[texts, log-probabilities or null] of the prompt's tokens, once for each choice, where it is given back."""


class Generation:
    """One order to generate. Iterate over it once, then `close` it; to close it early cancels it."""

    def __init__(self, id: int, choices: int, forget: Callable[[Generation], None]):
        self.id, self.choices = id, choices
        self.prompt_tokens = self.cached_tokens = 0
        self.prompt_cost: float | None = None
        """Mean true cost of the prompts' tokens, once all is done."""
        self.prompts: list[Message] = []
        """Depths and cost of each prompt, once all is done, where they were asked for."""
        self.inbox: asyncio.Queue[Message | Delta | Exception] = asyncio.Queue()
        self.start = monotonic()
        self.last_token = [0.0] * choices
        self.counts = [0] * choices
        self.open = choices
        """Choices that are not finished."""
        self._forget = forget

    async def wait_accepted(self) -> None:
        """Wait until the engine has taken it. Raises Refused, Failed or EngineDown."""
        message = await self._next()
        assert isinstance(message, dict)
        self.prompt_tokens = message["prompt_tokens"]

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """New tokens as they come. Raises Failed or EngineDown."""
        while not isinstance(message := await self._next(), dict):
            if message.finish == "error":
                raise FailedOrder
            yield message
        self.cached_tokens, self.prompts = message["cached"], message.get("prompts", [])
        self.prompt_cost = message["prompt_cost"]

    def close(self) -> None:
        """Nobody listens any more: what is not finished is cancelled."""
        self._forget(self)

    async def _next(self) -> Message | Delta:
        message = await self.inbox.get()
        if isinstance(message, Exception):
            raise message
        return message
