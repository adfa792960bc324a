"""The depth map of a conversation as a file, made by the engine's own model between two steps."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from depthdial.core.dial import PromptBudget
from depthdial.engine.llm import LLM
from depthdial.maps.html import map_page
from depthdial.maps.record import Recorder
from depthdial.maps.schema import DepthMap
from depthdial.maps.store import write_map
from depthdial.maps.texts import MapText, conversation_text
from depthdial.models.convert import head_of, layers_of
from depthdial.serve.fit import RefusedOrder, check_budgets
from depthdial.serve.in_turns import Pause, in_turns
from depthdial.serve.map_queue import Stages

MOST = 2048
"""Tokens of a conversation that are mapped at most: everybody else waits meanwhile."""


class MapOrder(NamedTuple):
    """A map that can be made: budgets (None is the engine's), format, title, and the conversation as tokens."""

    text: MapText
    budget: float | None
    prompt_budget: PromptBudget | None
    format: str
    title: str | None


def map_order(llm: LLM, narrow: bool, longest_prompt: int | None, order: dict[str, Any]) -> MapOrder:
    """What is to be mapped. Raises ValueError for what cannot be, with the OpenAI API's code where it is too long."""
    if narrow:
        raise ValueError("a server with narrow weights draws no maps: it keeps no model that could be run on its own")
    check_budgets(llm, order["budget"], order["prompt_budget"])
    text = conversation_text(llm.tokenizer, order["messages"], id="chat")
    most = min(MOST, llm.context, longest_prompt or MOST)
    if len(text.ids) > most:
        why = f"the maximum context length of a map is {most} tokens here, and the conversation has {len(text.ids)}"
        raise RefusedOrder(f"{why}; leave out its first turns", "messages", "context_length_exceeded")
    return MapOrder(text, order["budget"], order["prompt_budget"], order["format"], order["title"])


def export_map(llm: LLM, name: str, order: MapOrder) -> Stages:
    """A page or a Parquet file, in base64. Between two layers of the model others have their turn."""

    def work(pause: Pause) -> str:
        modules = [*layers_of(llm.model), head_of(llm.model)]
        hooks = [module.register_forward_pre_hook(lambda *_: pause()) for module in modules]
        try:
            map_ = _passes(llm, name, order)
        finally:
            for hook in hooks:
                hook.remove()
        pause()
        return _file(map_, order)

    return in_turns(work)


def _passes(llm: LLM, name: str, order: MapOrder) -> DepthMap:
    budget = llm.budget if order.budget is None else order.budget
    reading = llm.prompt_budget if order.prompt_budget is None else order.prompt_budget
    recorder = Recorder(
        llm.model,
        llm.tokenizer,
        llm.dials(budget, reading),
        name,
        budget,
        scores=True,
        alternatives=3,
        prompt_budget=reading,
    )
    return DepthMap(recorder.facts, recorder.rows([order.text]))


def _file(map_: DepthMap, order: MapOrder) -> str:
    if order.format == "html":
        data = map_page([map_], title=order.title or "Depth of a conversation").encode()
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "map.parquet"
            write_map(map_, file)
            data = file.read_bytes()
    return base64.b64encode(data).decode()
