"""`generate` of a converted model: the prompt is read by one dial, what comes after it is written by another.

A budget is held for each row by feedback on its own tokens (`core.hold`). A row is known by its text, so beams that
are reordered, drafts that are dropped and passes without a cache all find the state that is theirs. This is the slow
form that the engine must equal.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthdial.core.cost import exact_cost
from depthdial.core.dial import Dials, PromptBudget
from depthdial.core.hold import Hold, HoldState
from depthdial.core.route import Route


class Turned(NamedTuple):
    """What a model's dials were last set to by budgets: `save_pretrained` keeps it, `generate` goes by it."""

    budget: float | None
    offset: float
    """What `route.offset` was set to: it counts as long as that stands there."""
    prompt_budget: PromptBudget
    dials: Dials


class Generating:
    """A converted model's `generate`."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, the prompt at `route.read_offset` and the rest at `route.offset`; where these
        stand as a budget set them (`load`, `set_budget`), by that budget, which is held. What a cache holds already
        stays as it was computed."""
        model = self.model
        route, turned = model.route, getattr(model, "turned", None)
        assert isinstance(route, Route)
        written, hold = route.offset, None
        if isinstance(turned, Turned) and not isinstance(written, Tensor) and written == turned.offset:
            written, _, hold = turned.dials
        ids, embeds = (kwargs.get("input_ids") if inputs is None else inputs), kwargs.get("inputs_embeds")
        first = embeds if ids is None else ids
        prompt = int(embeds is None) if ids is None else ids.shape[1]  # without both it is a token of its own
        stock: Any = type(model)
        with _Dials(route, written, hold, prompt, 1 if first is None else len(first)).set_for(model):
            return stock.generate(model, inputs, *args, **kwargs)


class _Text:
    """What is known after a written token, and after each that was seen to follow it."""

    def __init__(self, state: HoldState):
        self.state = state
        self.after: dict[int, _Text] = {}


class _Dials:
    """Those of one call of `generate`, set before each of its passes."""

    def __init__(self, route: Route, written: float | Tensor, hold: Hold | None, prompt: int, prompts: int):
        """prompt: tokens of each of the `prompts`."""
        self.route, self.written, self.hold, self.prompt = route, written, hold, prompt
        self.texts = [] if hold is None else [_Text(hold.begin()) for _ in range(prompts)]
        self.ids: list[list[int]] = []
        """The tokens of each row after its prompt, those of the coming pass included."""

    @contextmanager
    def set_for(self, model: Any) -> Iterator[None]:
        """Meanwhile all passes of the model are of this call. Afterwards the route's dials are as they were."""
        ask, before = model.prepare_inputs_for_generation, (self.route.offset, self.route.read)

        @functools.wraps(ask)
        def noted(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.ids = input_ids[:, self.prompt :].tolist()
            return ask(input_ids, *args, **kwargs)

        decoder = model.get_decoder()
        hooks = (
            decoder.register_forward_pre_hook(self._set, prepend=True, with_kwargs=True),
            decoder.register_forward_hook(self._count),
        )
        vars(model)["prepare_inputs_for_generation"] = noted
        try:
            yield
        finally:
            del vars(model)["prepare_inputs_for_generation"]
            for hook in hooks:
                hook.remove()
            self.route.offset, self.route.read = before

    def _set(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs.get("input_ids")
        like: Tensor = kwargs["inputs_embeds"] if tokens is None else tokens
        rows, length = like.shape[:2]
        new, route = min(len(self.ids[0]), length), self.route
        route.offset, route.read = self.written, None
        if route.read_offset is not None:
            if not new:
                route.offset = route.read_offset
            elif new < length:
                route.read = (torch.arange(length, device=like.device) < length - new).expand(rows, length)
        if self.hold is not None and new:
            start = [self.hold.offset(self.hold.begin())] * (length - new)
            route.offset = torch.tensor(
                [start + self._offsets(self.hold, row, rows, new) for row in range(rows)], device=like.device
            )

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

    def _count(self, *_: Any) -> None:
        """After a pass: what its written tokens cost."""
        route, (rows, length) = self.route, self.route.shape
        new = min(len(self.ids[0]), length)
        if self.hold is None or not new:
            return
        costs = exact_cost(route.ledger, route.decisions, route.dial, route.shape, route.device)[:, -new:].tolist()
        for row in range(rows):
            text = self._before(row, rows, new)
            for token, cost in zip(self.ids[row][-new:], costs[row], strict=True):
                if token not in text.after:
                    text.after[token] = _Text(self.hold.after(text.state, [cost]))
                text = text.after[token]
