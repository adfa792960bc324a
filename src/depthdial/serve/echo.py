"""A prompt given back before its continuation: its text, token by token, and how likely the model found it."""

from __future__ import annotations

from typing import Any

from depthdial.engine.request import Request
from depthdial.engine.text import TextStream
from depthdial.serve.token_names import TokenNames


class Echo:
    """Of one request. prompt: as the client gave it; of a text, special tokens that the tokenizer added are no part."""

    def __init__(self, tokenizer: Any, names: TokenNames, request: Request, prompt: Any):
        self.request, self.names = request, names
        pieces = TextStream(tokenizer, ())
        for token in request.token_ids:
            pieces.push(token)
        pieces.close()
        special = set() if isinstance(prompt, str) or prompt is None else set(tokenizer.all_special_ids)
        texts = list(pieces.pieces)
        self.texts = [
            names.of(i)[0] if i in special else text for i, text in zip(request.token_ids, texts, strict=True)
        ]
        """What each token adds to the text."""

    @property
    def ready(self) -> bool:
        """Are the log-probabilities there, if any are asked for?"""
        return not self.request.unscored

    def entries(self) -> list[list[Any]]:
        """[text, bytes, log-probability, the likeliest] of each token; the first has no log-probability."""
        likely: list[Any] = [None, *self.request.prompt_logprobs]
        return [self._entry(token, of) for token, of in zip(self.request.token_ids, likely, strict=True)]

    def _entry(self, token: int, likely: dict[int, float] | None) -> list[Any]:
        if likely is None:
            return [*self.names.of(token), None, None]
        return self.names.entry(token, likely, self.request.params.prompt_logprobs)
