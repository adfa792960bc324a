"""One order to generate, as the worker follows it: what is new in its texts, and how it ended."""

from __future__ import annotations

import math
from typing import Any

from depthdial.engine.request import Request, Row
from depthdial.serve.token_names import TokenNames
from depthdial.serve.wire import Message


class GenerationJob:
    """One order to generate: its prompts, and how much of each text has been told."""

    def __init__(self, id: int, requests: list[Request], names: TokenNames, depths: bool):
        self.id, self.requests, self._names, self._depths = id, requests, names, depths
        self.rows: list[Row] = [row for request in requests for row in request.rows]
        """In the order of the choices they become."""
        self._positions = [0] * len(self.rows)
        self._ended = [False] * len(self.rows)

    @property
    def done(self) -> bool:
        return all(request.done for request in self.requests)

    def news(self) -> list[list[Any]]:
        """What is new: [job, choice, tokens, log-probabilities or null, finish reason or null]."""
        news = []
        for choice, row in enumerate(self.rows):
            first, finish = self._positions[choice], row.finish_reason
            pieces = row.pieces(first)
            if not pieces and (finish is None or self._ended[choice]):
                continue
            self._positions[choice] += len(pieces)
            self._ended[choice] = finish is not None
            tokens = [[p.text, p.token_id, p.depth, round(p.cost, 5), p.layers.hex()] for p in pieces]
            logprobs = None
            if row.request.params.logprobs is not None:
                logprobs = [
                    self._logprob_entry(p.token_id, of)
                    for p, of in zip(pieces, row.logprobs[first : self._positions[choice]], strict=True)
                ]
            # one that was to have no tokens has them all
            news.append([self.id, choice, tokens, logprobs, "length" if finish == "cancelled" else finish])
        return news

    def _logprob_entry(self, token: int, logprobs: dict[int, float]) -> list[Any]:
        """[text, bytes, log-probability, [the likeliest, each as text, bytes, log-probability]]."""
        likeliest = sorted(logprobs.items(), key=lambda item: -item[1])[: self.requests[0].params.logprobs]
        return [
            *self._names.of(token),
            _number(logprobs[token]),
            [[*self._names.of(i), _number(value)] for i, value in likeliest],
        ]

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
            message["prompts"] = [{"depths": out.prompt_depths, "cost": _number(out.prompt_cost)} for out in outputs]
        return message


def _number(value: float) -> float | None:
    """JSON has neither nan nor inf; the OpenAI API writes -9999.0 for what is impossible."""
    return None if math.isnan(value) else max(value, -9999.0)
