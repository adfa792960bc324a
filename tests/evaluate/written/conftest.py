"""Prompts and an evaluation over tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthdial.evaluate.subjects import Lineup, Setup
from depthdial.evaluate.written.answers import Answer
from depthdial.evaluate.written.run import WrittenOptions

PROMPTS = [
    {"task": task, "prompt": f"the {word} fox and the lazy dog"}
    for task, words in (("chat", ("quick", "brown", "other")), ("code", ("jumps", "over", "lazy")))
    for word in words
]


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory) -> Path:
    """Six prompts of two kinds."""
    file = tmp_path_factory.mktemp("prompts") / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return file


@pytest.fixture
def options(tiny_folder, tiny_plugin, prompt_file, tmp_path) -> Callable[..., WrittenOptions]:
    """`options(**fields)`: of `Options`, of its `Lineup`, or the prompt budget."""

    def make(**fields: Any) -> WrittenOptions:
        lineup = {"plugin": str(tiny_plugin), "budgets": [1.0, 0.8], "baselines": {}}
        lineup |= {name: fields.pop(name) for name in Lineup.__dataclass_fields__ if name in fields}
        content = fields.pop("prompt_budget", None)
        facts = {
            "model": str(tiny_folder),
            "lineup": Lineup(**lineup),
            "setup": Setup(str(tiny_folder), "float32", "cpu", max_batch=4, prompt_budget=content),
            "prompts": str(prompt_file),
            "max_tokens": 12,
            "output": tmp_path / "out",
        }
        return WrittenOptions(**{**facts, **fields})

    return make


@pytest.fixture(scope="session")
def answer() -> Callable[..., Answer]:
    """`answer(ids, ...)`: one whose passes all cost `cost` and whose tokens all have `logprob`."""

    def make(
        ids: list[int], cost: float = 0.8, logprob: float = -0.5, ended: bool = False, text: str | None = None
    ) -> Answer:
        passes = max(1, len(ids) - 1)
        view = " ".join(map(str, ids)) if text is None else text
        return Answer(view, ids, ended, 4, 4.0, passes, cost * passes, logprob * len(ids))

    return make
