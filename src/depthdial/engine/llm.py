"""`LLM`: prompts in, text and the depth of every token out.

This file is *not* about how a batch is run (`step`) or how a token is drawn (`sampling`).
"""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Unpack, cast

from rich.console import Console
from rich.progress import Progress
from torch import dtype as Dtype

from depthdial.core.dial import Dials, PromptBudget
from depthdial.core.dial import prompt_budget as checked
from depthdial.engine.adjust import check_bias
from depthdial.engine.assemble import assemble, fit_cache
from depthdial.engine.auto import AutoBudget
from depthdial.engine.budgets import Budgets
from depthdial.engine.config import Budget, EngineConfig, EngineOptions
from depthdial.engine.notebook import llm_in_words
from depthdial.engine.output import Piece, RequestOutput, Sample
from depthdial.engine.own_sampling import OwnSampling
from depthdial.engine.prefix import first_key
from depthdial.engine.prompt import Message, Plain, Prompt, conversation, conversations, many, one
from depthdial.engine.request import Request
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.stats import Stats
from depthdial.engine.step import Dial
from depthdial.models import load
from depthdial.models.ahead import check_reading
from depthdial.models.chat import ChatTemplate
from depthdial.models.checkpoint import Plugin
from depthdial.models.convert import converted_of
from depthdial.models.ropes import context_of

__all__ = ["LLM", "Piece", "RequestOutput", "Sample", "SamplingParams"]


class LLM:
    """A base model with a depth plug-in, ready to generate.

    model: short name, hub id, folder or GGUF file. plugin: "default" (the one shipped for this model), None (the bare
    base), a folder or a hub id. budget: true cost of what is written, relative to dense; None: the plug-in's own,
    "auto" moves it with the load or towards `target_tokens_per_second`, so that a text is not reproducible, with a seed
    either. prompt_budget: that of what is read, 1.0 (the untouched base), a number or "same" as `budget`; None is 1.0,
    or "same" for a model with routers of its own, which has no untouched base.

    engine: see `EngineConfig`. With other weights than "auto" `model` keeps no matrices of its own and cannot be called
    itself. Raises ValueError or OSError, one line, for what cannot be loaded and a budget outside the plug-in's curve.
    """

    def __init__(
        self,
        model: str,
        plugin: str | None = "default",
        budget: Budget = None,
        dtype: str | Dtype = "bfloat16",
        device: str = "auto",
        allow_other_weights: bool = False,
        prompt_budget: PromptBudget | None = None,
        **engine: Unpack[EngineOptions],
    ):
        options = EngineConfig(**engine)
        auto = options.auto(budget)  # said before minutes of loading
        read = None if prompt_budget is None else checked(prompt_budget)
        if read is not None:
            check_reading(model, read)  # so is this
        start = auto.highest if auto is not None else cast("float | None", budget)
        opened = load(model, plugin, start, dtype, device, allow_other_weights)
        self._set(*opened, budget, read, options, auto, name=model)

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        budget: Budget = None,
        prompt_budget: PromptBudget | None = None,
        **engine: Unpack[EngineOptions],
    ) -> LLM:
        """Generate with a converted model that is already in memory; it is put into inference mode."""
        options = EngineConfig(**engine)
        llm = cls.__new__(cls)
        read = None if prompt_budget is None else checked(prompt_budget)
        llm._set(model, tokenizer, budget, read, options, options.auto(budget))
        return llm

    def _set(
        self,
        model: Any,
        tokenizer: Any,
        budget: Budget,
        prompt_budget: PromptBudget | None,
        options: EngineConfig,
        auto: AutoBudget | None,
        name: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.options = model.eval(), tokenizer, options
        config, converted, self._template = model.config.get_text_config(), converted_of(model), ChatTemplate(tokenizer)
        self.layers: int = len(converted.program.visits)
        """What a token's depth is counted of: the base's layers, and what a method has beside them."""
        self.always_on: int = converted.program.least
        """The least depth there can be."""
        self.context = context_of(config)
        """Most tokens of prompt and continuation together."""
        self._vocabulary: int = config.vocab_size
        self.sampling = OwnSampling(model.generation_config)
        """How a text is drawn where a request does not say."""
        ends = model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self.plugin: Plugin | None = converted.plugin
        self._method = converted.method
        self.budgets = Budgets(model, budget, prompt_budget, auto)
        """What texts may cost that do not say."""
        tokens = fit_cache(model, options.cache_tokens, options.max_batch * self.context)
        self.engine = assemble(model, options, tokens, self.context, frozenset(ends - {None}), name)
        self.engine.dial = None if auto is None else Dial(auto, self.offset_of)

    def __repr__(self) -> str:
        return llm_in_words(self)

    @property
    def budget(self) -> float | None:
        """The budget of requests that name none; None where the plug-in recommends none: its trained form."""
        return self.budgets.write

    @property
    def prompt_budget(self) -> PromptBudget:
        """The `prompt_budget` of requests that name none."""
        return self.budgets.read

    @property
    def max_batch(self) -> int:
        """Most texts at a time."""
        return self.options.max_batch

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text."""
        return self.engine.ends

    @ends.setter
    def ends(self, ends: frozenset[int]) -> None:
        self.engine.ends = ends

    @property
    def stats(self) -> Stats:
        """What ran so far, counted where it ran."""
        with self.engine.lock:  # a runner sums up when it is asked
            return self.engine.runner.stats

    def offset_of(self, budget: float | None) -> float:
        """The logit offset of what is written for a budget, None that of this `LLM`. ValueError outside the curve."""
        return self.budgets.offset(budget)

    def stop_of(self, budget: float | None = None) -> float | None:
        """The mean true cost of the stop that is taken for a budget, where the dial has stops: the next lower one; None
        where it has none. budget None: that of this `LLM`. ValueError outside the curve."""
        return self.budgets.stop(budget)

    def dials(self, budget: float | None = None, prompt_budget: PromptBudget | None = None) -> Dials:
        """The logit offsets of a request with these budgets; None are those of this `LLM`. ValueError outside the
        curves, and for a `prompt_budget` that the model cannot have."""
        return self.budgets.dials(budget, prompt_budget)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt (text, or token ids: see `prompt.Prompt`); one output per prompt, in the order given.

        params: one for all, or one per prompt; what they leave out is the model's own (`SamplingParams`). Raises
        ValueError, before anything runs, for what is no prompt, for one that is empty or longer than the context, and
        for a budget outside the plug-in's curve.
        """
        requests = self._requests(many(prompts), params)
        with Progress(console=Console(file=sys.stderr), disable=not progress) as bar:
            task = bar.add_task("generating", total=sum(request.params.n for request in requests))
            try:
                for request in requests:
                    self.engine.submit(request, self.tokenizer)
                left = requests
                while left := [request for request in left if not request.done]:
                    ended = 0
                    while not ended and not left[0].done:  # another thread may have ended it
                        ended = sum(row.finish_reason is not None for row in self.engine.step())
                    bar.advance(task, ended)
            finally:  # an interrupt leaves nothing behind
                for request in requests:
                    self.engine.cancel(request)
        return [request.output() for request in requests]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation, a list of {"role": ..., "content": ...}, or several, with the model's template."""
        tokens = [self.chat_tokens(each) for each in conversations(messages)]
        return self.generate(tokens, params, progress=progress)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[Piece, None, RequestOutput]:
        """Continue one prompt and give each token as soon as its text is final; joined, the texts are `text`. The
        generator's return value is the `RequestOutput`. Raises ValueError like `generate`, and for n > 1."""
        (request,) = self._requests([one(prompt)], params)
        if request.params.n != 1:
            raise ValueError(f"a stream has one sample, not n={request.params.n}; use generate")
        return self._stream(request)

    def _stream(self, request: Request) -> Generator[Piece, None, RequestOutput]:
        self.engine.submit(request, self.tokenizer)
        return (yield from self.follow(request))

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Request:
        """Queue one prompt and come back at once. `follow` gives its tokens, `cancel` ends it; any call that generates
        moves it on. Raises ValueError like `generate`."""
        (request,) = self._requests([one(prompt)], params)
        self.engine.submit(request, self.tokenizer)
        return request

    def follow(self, request: Request) -> Generator[Piece, None, RequestOutput]:
        """The tokens of the first sample of a submitted request, as their text becomes final; returns its output. To
        close the generator cancels the request. RuntimeError if its pass fails."""
        row, given = request.rows[0], 0
        try:
            while True:
                with self.engine.lock:  # another thread may be stepping
                    done, pieces = request.done, row.pieces(given)
                given += len(pieces)
                yield from pieces
                if done:
                    break
                self.engine.step()
        finally:
            self.engine.cancel(request)
        if row.error is not None:
            raise RuntimeError(row.error)
        return request.output()

    def cancel(self, request: Request) -> None:
        """End a submitted request, wherever it is; what it has generated so far stays in its output."""
        self.engine.cancel(request)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt for the answer to a conversation; what its messages say is never a control token. ValueError where
        the tokenizer has no chat template, or one that refuses the conversation."""
        if not self.tokenizer.chat_template:
            raise ValueError("this model has no chat template; give the prompt as it is (generate, --raw)")
        return self._template.ids(conversation(messages), prompt=True)

    def _requests(
        self, prompts: Sequence[Plain], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        wanted: Any = SamplingParams() if params is None else params
        one_for_all = not isinstance(wanted, Iterable) or isinstance(wanted, str | Mapping)
        each: list[Any] = [wanted] * len(prompts) if one_for_all else list(wanted)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} sampling parameters; give one, or one per prompt")
        if wrong := [item for item in each if not isinstance(item, SamplingParams)]:
            raise ValueError(f"params is SamplingParams(...), one for all or one per prompt, not {wrong[0]!r}")
        names = [f"prompt {i}" if len(prompts) > 1 else "the prompt" for i in range(len(prompts))]
        return [self._request(*row) for row in zip(names, prompts, each, strict=True)]

    def _request(self, name: str, prompt: Plain, params: SamplingParams) -> Request:
        text, params = prompt if isinstance(prompt, str) else None, self.sampling.fill(params)
        ids: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"] if isinstance(prompt, str) else prompt
        if not prompt or not ids:
            raise ValueError(f"{name} is empty; give at least one token")
        if bad := [i for i in ids if not 0 <= i < self._vocabulary]:
            raise ValueError(f"{name} has token {bad[0]!r}; tokens are whole numbers from 0 to {self._vocabulary - 1}")
        if len(ids) >= self.context:
            raise ValueError(
                f"{name} has {len(ids)} tokens, the model's context is {self.context} with at least one to generate; "
                "shorten the prompt"
            )
        check_bias(params, self._vocabulary)
        limit = min(params.max_tokens, self.context - len(ids))
        try:
            self.engine.scheduler.check(len(ids) + limit)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        seed = secrets.randbits(63) if params.seed is None else params.seed
        key = first_key(self._method, None if self.plugin is None else self.plugin.name)
        if not params.lossless:
            dials = self.dials(params.budget, params.prompt_budget)
            target = self.budget if params.budget is None else params.budget
            moving, steady = self.budgets.auto is not None and params.budget is None, self.budgets.steady
            return Request(text, ids, params, seed, dials, limit, key, target=target, moving=moving, steady=steady)
        draft = self.budget if params.draft_budget is None else params.draft_budget
        return Request(text, ids, params, seed, Dials(math.inf), limit, key, self.offset_of(draft), draft or 1.0)
