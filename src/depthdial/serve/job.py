"""One order to generate, as the worker follows it: what is new in its texts, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthdial.engine.request import Request, Row
from depthdial.serve.echo import Echo
from depthdial.serve.token_names import TokenNames, number
from depthdial.serve.wire import Message


class GenerationJob:
    """One order to generate: its prompts, and how much of each text has been told.

    echoes: of each request, where prompts are given back; silent: nothing of what is generated is told.
    """

    def __init__(
        self,
        id: int,
        requests: list[Request],
        names: TokenNames,
        depths: bool,
        echoes: Sequence[Echo] = (),
        silent: bool = False,
    ):
        self.id, self.requests, self._names, self._depths, self._silent = id, requests, names, depths, silent
        self.rows: list[Row] = [row for request in requests for row in request.rows]
        """In the order of the choices they become."""
        self._positions = [0] * len(self.rows)
        self._ended = [False] * len(self.rows)
        self._echoes = [echo for echo in echoes for _ in echo.request.rows]
        self._echoed = [not self._echoes] * len(self.rows)

    @property
    def done(self) -> bool:
        return all(request.done for request in self.requests)

    def news(self) -> list[list[Any]]:
        """What is new: [job, choice, tokens, log-probabilities or null, finish reason or null, the prompt's own
        [texts, log-probabilities or null] before anything else of a choice that gives it back]."""
        news = []
        for choice, row in enumerate(self.rows):
            if not self._echoed[choice] and (echo := self._echoes[choice]).ready:
                self._echoed[choice] = True
                logprobs = None if row.request.params.prompt_logprobs is None else echo.entries()
                news.append([self.id, choice, [], None, None, [echo.texts, logprobs]])
            first, finish = self._positions[choice], row.finish_reason
            pieces = [] if self._silent else row.pieces(first)
            if not pieces and (finish is None or self._ended[choice]):
                continue
            self._positions[choice] += len(pieces)
            self._ended[choice] = finish is not None
            tokens = [[p.text, p.token_id, p.depth, round(p.cost, 5), p.layers.hex()] for p in pieces]
            logprobs = None
            if row.request.params.logprobs is not None:
                logprobs = [
                    self._names.entry(p.token_id, of, row.request.params.logprobs)
                    for p, of in zip(pieces, row.logprobs[first : self._positions[choice]], strict=True)
                ]
            # one that was to have no tokens has them all
            over = "length" if finish == "cancelled" or (self._silent and finish == "stop") else finish
            news.append([self.id, choice, tokens, logprobs, over])
        return news

    def end(self) -> Message:
        """What is known of the prompts once all is done."""
        outputs = [out for request in self.requests if (out := request.output()).prompt_depths]
        tokens = sum(len(out.prompt_depths) for out in outputs)
        cost = sum(out.prompt_cost * len(out.prompt_depths) for out in outputs)
        message: Message = {
            "done": self.id,
            "cached": sum(request.cached_tokens for request in self.requests),
            "prompt_cost": round(cost / tokens, 5) if tokens else None,
        }
        if self._depths:
            message["prompts"] = [{"depths": out.prompt_depths, "cost": number(out.prompt_cost)} for out in outputs]
        return message
