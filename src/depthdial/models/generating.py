"""`generate` of a converted model: the prompt is read by one dial, what comes after it is written by another.

A budget is held for each row by feedback on its own tokens (`core.hold`). A row is known by its text, so beams that
are reordered, drafts that are dropped and passes without a cache all find the state that is theirs. This is the slow
form that the engine must equal.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthdial.core.cost import exact_cost
from depthdial.core.dial import Dials, PromptBudget
from depthdial.core.hold import Hold, HoldState
from depthdial.core.settings import Settings
from depthdial.models.converted import Converted, converted_of


class Turned(NamedTuple):
    """What a model's dials were last set to by budgets: `save_pretrained` keeps it, `generate` goes by it."""

    budget: float | None
    offset: float
    """What the settings' offset was set to: it counts as long as that stands there."""
    prompt_budget: PromptBudget
    dials: Dials


class Generating:
    """A converted model's `generate`."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, the prompt at the settings' `read_offset` and the rest at their `offset`;
        where these stand as a budget set them (`load`, `set_budget`), by that budget, which is held. What a cache holds
        already stays as it was computed."""
        model, converted = self.model, converted_of(self.model)
        settings, turned = converted.settings, converted.turned
        written, hold = settings.offset, None
        if isinstance(turned, Turned) and not isinstance(written, Tensor) and written == turned.offset:
            written, _, hold = turned.dials
        ids, embeds = (kwargs.get("input_ids") if inputs is None else inputs), kwargs.get("inputs_embeds")
        first = embeds if ids is None else ids
        prompt = int(embeds is None) if ids is None else ids.shape[1]  # without both it is a token of its own
        stock: Any = type(model)
        before = converted.threads.dials
        converted.threads.dials = _Dials(converted, written, hold, prompt, 1 if first is None else len(first))
        try:
            return stock.generate(model, inputs, *args, **kwargs)
        finally:
            converted.threads.dials = before


class Preparing:
    """A converted model's `prepare_inputs_for_generation`: what `generate` has written so far is noted."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    @property
    def _stock(self) -> Any:
        kind: Any = type(self.model)
        return kind.prepare_inputs_for_generation

    @property
    def __signature__(self) -> inspect.Signature:  # `generate` looks which arguments there are
        signature = inspect.signature(self._stock)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        dials = converted_of(self.model).threads.dials
        if dials is not None:
            dials.ids = input_ids[:, dials.prompt :].tolist()
        return self._stock(self.model, input_ids, *args, **kwargs)


class Counting:
    """A hook after a decoder's forward: what its written tokens cost moves the dial of a `generate` under way."""

    def __init__(self, converted: Converted):
        self.converted = converted

    def __call__(self, *_: Any) -> None:
        if self.converted.threads.dials is not None:
            self.converted.threads.dials.count()


class _Text:
    """What is known after a written token, and after each that was seen to follow it."""

    def __init__(self, state: HoldState):
        self.state = state
        self.after: dict[int, _Text] = {}


class _Dials:
    """Those of one call of `generate`, for each of its passes."""

    def __init__(self, converted: Converted, written: float | Tensor, hold: Hold | None, prompt: int, prompts: int):
        """prompt: tokens of each of the `prompts`."""
        self.converted, self.written, self.hold, self.prompt = converted, written, hold, prompt
        self.texts = [] if hold is None else [_Text(hold.begin()) for _ in range(prompts)]
        self.ids: list[list[int]] = []
        """The tokens of each row after its prompt, those of the coming pass included."""

    def settings(self, position: Tensor, rows: int) -> Settings:
        """Of the coming pass. position: int64 [B or 1, T]."""
        before, length = self.converted.settings, position.shape[1]
        new, offset, read = min(len(self.ids[0]), length), self.written, None
        if before.read_offset is not None:
            if not new:
                offset = before.read_offset
            elif new < length:
                read = (torch.arange(length, device=position.device) < length - new).expand(rows, length)
        if self.hold is not None and new:
            start = [self.hold.offset(self.hold.begin())] * (length - new)
            offset = torch.tensor(
                [start + self._offsets(self.hold, row, rows, new) for row in range(rows)], device=position.device
            )
        prompt = position[:, -1] + 1 - len(self.ids[0])
        return replace(before, offset=offset, read=read, prompt=prompt)

    def _offsets(self, hold: Hold, row: int, rows: int, new: int) -> list[float]:
        """Of a row's last `new` tokens. Drafts past the end of a block run at its offset."""
        text, offsets = self._before(row, rows, new), []
        for token in self.ids[row][-new:]:
            offsets.append(offsets[-1] if text is None else hold.offset(text.state))
            text = None if text is None else text.after.get(token)
        return offsets

    def _before(self, row: int, rows: int, new: int) -> _Text:
        """What is known of a row before its last `new` tokens. A prompt's rows stand side by side."""
        text = self.texts[row // (rows // len(self.texts))]
        for token in self.ids[row][:-new]:
            text = text.after[token]
        return text

    def count(self) -> None:
        """After a pass: what its written tokens cost."""
        last = self.converted.threads.last
        assert last is not None and last.tokens.shape is not None
        rows, length = last.tokens.shape
        new = min(len(self.ids[0]), length)
        if self.hold is None or not new:
            return
        costs = exact_cost(self.converted.ledger, last.tokens, last.trace).view(rows, length)[:, -new:].tolist()
        for row in range(rows):
            text = self._before(row, rows, new)
            for token, cost in zip(self.ids[row][-new:], costs[row], strict=True):
                if token not in text.after:
                    text.after[token] = _Text(self.hold.after(text.state, [cost]))
                text = text.after[token]
