"""The depth map of a conversation as a file, made by the engine's own model between two steps."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

from depthdial.engine.llm import LLM
from depthdial.maps.html import page
from depthdial.maps.record import Recorder
from depthdial.maps.schema import DepthMap
from depthdial.maps.store import write
from depthdial.maps.texts import conversation

MOST = 2048
"""Tokens of a conversation that are mapped at most: everybody else waits meanwhile."""


def export(llm: LLM, name: str, int8: bool, order: dict[str, Any]) -> str:
    """A page or a Parquet file, in base64. order: messages, budget (None is the engine's), format and title.

    Raises ValueError for what cannot be mapped.
    """
    if int8:
        raise ValueError("a server with int8 weights draws no maps: it keeps no model that could be run on its own")
    budget = llm.budget if order["budget"] is None else order["budget"]
    text = conversation(llm.tokenizer, order["messages"], id="chat")
    most = min(MOST, llm.context)
    if len(text.ids) > most:
        raise ValueError(f"the conversation has {len(text.ids)} tokens; a map of up to {most} is drawn here")
    recorder = Recorder(
        llm.model, llm.tokenizer, offset=llm.offset_of(budget), name=name, budget=budget, scores=True, alternatives=3
    )
    made = DepthMap(recorder.facts, recorder.rows([text]))
    if order["format"] == "html":
        data = page([made], title=order["title"] or "Depth of a conversation").encode()
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "map.parquet"
            write(made, file)
            data = file.read_bytes()
    return base64.b64encode(data).decode()
