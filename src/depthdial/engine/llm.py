"""`LLM`: prompts in, text and the depth of every token out.

This file is *not* about how a batch is run (`decode`) or how a token is drawn (`sampling`).
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Generator, Iterator, Sequence
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import Progress

from depthdial.engine.decode import decode
from depthdial.engine.request import Piece, Request, RequestOutput, Row, Sample
from depthdial.engine.sampling import SamplingParams
from depthdial.models import load
from depthdial.models.checkpoint import Plugin
from depthdial.models.dial import offset_for

__all__ = ["LLM", "Piece", "RequestOutput", "Sample", "SamplingParams"]

Prompt = str | Sequence[int]
Message = dict[str, str]


class LLM:
    """A base model with a depth plug-in, ready to generate.

    model: short name, hub id, folder or GGUF file. plugin: "default" (the one shipped for this model), None (the bare
    base) or a folder. budget: true cost relative to dense; None is the plug-in's recommended one. Raises ValueError or
    OSError, one line, for what cannot be loaded and for a budget outside the plug-in's curve.
    """

    def __init__(
        self,
        model: str,
        plugin: str | None = "default",
        budget: float | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str = "auto",
        allow_other_weights: bool = False,
        max_batch: int = 16,
    ):
        if max_batch < 1:  # said before minutes of loading
            raise ValueError(f"max_batch must be at least 1, not {max_batch}")
        loaded = load(model, plugin, budget, dtype, device, allow_other_weights)
        self._set(*loaded, budget, max_batch)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, budget: float | None = None, max_batch: int = 16) -> LLM:
        """Generate with a converted model that is already in memory; it is put into inference mode."""
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, not {max_batch}")
        llm = cls.__new__(cls)
        llm._set(model, tokenizer, budget, max_batch)
        return llm

    def _set(self, model: Any, tokenizer: Any, budget: float | None, max_batch: int) -> None:
        self.model, self.tokenizer, self.max_batch = model.eval(), tokenizer, max_batch
        config = model.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        self.always_on: int = self.layers - len(model.method.layers(self.layers))
        """Layers every token runs: the least depth there can be."""
        self.context: int = config.max_position_embeddings
        """Most tokens of prompt and continuation together."""
        self._vocabulary: int = config.vocab_size
        ends = model.generation_config.eos_token_id
        ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}
        self.ends: frozenset[int] = frozenset(ends - {None})
        """The tokens that end a text."""
        self.plugin: Plugin | None = getattr(model, "plugin", None)
        self.budget = self._recommended() if budget is None else budget
        """The budget of requests that name none; None where the plug-in recommends none: its trained form."""
        self.offset_of(None)

    def _recommended(self) -> float | None:
        if self.always_on == self.layers:
            return 1.0
        return None if self.plugin is None else self.plugin.recommended

    def offset_of(self, budget: float | None) -> float:
        """The logit offset for a request's budget; None is the budget of this `LLM`. ValueError outside the curve."""
        return offset_for(self.model, self.budget if budget is None else budget, kind="generated")

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt (text, or token ids); one output per prompt, in the order given.

        params: one for all, or one per prompt; None is greedy. Raises ValueError, before anything runs, for a prompt
        that is empty or longer than the context and for a budget outside the plug-in's curve.
        """
        many = cast("list[Prompt]", [prompts] if _is_one(prompts) else list(prompts))
        requests = self._requests(many, params)
        rows = [[Row(request, i, self.tokenizer) for i in range(request.params.n)] for request in requests]
        with Progress(console=Console(file=sys.stderr), disable=not progress) as bar:
            task = bar.add_task("generating", total=sum(map(len, rows)))
            for batch in self._batches([row for group in rows for row in group]):
                for step in decode(self.model, batch, self.ends):
                    bar.advance(task, sum(row.finish_reason is not None for row in step))
        return [_output(request, group) for request, group in zip(requests, rows, strict=True)]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation, a list of {"role": ..., "content": ...}, or several, with the model's template."""
        one = bool(messages) and isinstance(messages[0], dict)
        many = cast("Sequence[Sequence[Message]]", [messages] if one else messages)
        return self.generate([self.chat_tokens(conversation) for conversation in many], params, progress=progress)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[Piece, None, RequestOutput]:
        """Continue one prompt and give each token as soon as its text is final. Joined, the texts are `text`.

        The generator's return value is the `RequestOutput`. Raises ValueError like `generate`, and for n > 1.
        """
        (request,) = self._requests([prompt], params)
        if request.params.n != 1:
            raise ValueError(f"a stream has one sample, not n={request.params.n}; use generate")
        return self._stream(request)

    def _stream(self, request: Request) -> Generator[Piece, None, RequestOutput]:
        row, given = Row(request, 0, self.tokenizer), 0
        for _ in decode(self.model, [row], self.ends):
            pieces = row.pieces(given)
            given += len(pieces)
            yield from pieces
        return _output(request, [row])

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt for the answer to a conversation. ValueError where the tokenizer has no chat template."""
        if not self.tokenizer.chat_template:
            raise ValueError("this model has no chat template; give the prompt as it is (generate, --raw)")
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _requests(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        params = SamplingParams() if params is None else params
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} sampling parameters; give one, or one per prompt")
        names = [f"prompt {i}" if len(prompts) > 1 else "the prompt" for i in range(len(prompts))]
        return [self._request(*row) for row in zip(names, prompts, each, strict=True)]

    def _request(self, name: str, prompt: Prompt, params: SamplingParams) -> Request:
        text = prompt if isinstance(prompt, str) else None
        ids: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"] if isinstance(prompt, str) else list(prompt)
        if not prompt or not ids:
            raise ValueError(f"{name} is empty; give at least one token")
        if bad := [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self._vocabulary]:
            raise ValueError(f"{name} has token {bad[0]!r}; tokens are whole numbers from 0 to {self._vocabulary - 1}")
        if len(ids) >= self.context:
            raise ValueError(
                f"{name} has {len(ids)} tokens, the model's context is {self.context} with at least one to generate; "
                "shorten the prompt"
            )
        seed = secrets.randbits(63) if params.seed is None else params.seed
        limit = min(params.max_tokens, self.context - len(ids))
        return Request(text, ids, params, seed, self.offset_of(params.budget), limit)

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Rows of like length together, so that little is padded."""
        rows = sorted(rows, key=lambda row: row.length)
        for start in range(0, len(rows), self.max_batch):
            yield rows[start : start + self.max_batch]


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))


def _output(request: Request, rows: Sequence[Row]) -> RequestOutput:
    cost = sum(request.costs) / len(request.costs)
    samples = [row.result() for row in rows]
    return RequestOutput(request.prompt, request.token_ids, request.depths, cost, samples)
