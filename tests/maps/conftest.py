"""Tiny maps: of a real tiny model, and made up where the numbers themselves are tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from depthdial.maps.record import Recorder
from depthdial.maps.schema import DepthMap, Facts, MapRow
from depthdial.maps.texts import MapText


@pytest.fixture(scope="session")
def tiny_converted(tiny_model: Callable, adaptive: Callable) -> Any:
    """A converted model of 6 layers whose routers disagree; do not change it."""
    return adaptive(tiny_model("llama"), weights="hard")


@pytest.fixture(scope="session")
def tiny_map(tiny_converted: Any, tiny_tokenizer: Any) -> DepthMap:
    """Three texts, with scores and two alternatives."""
    recorder = Recorder(tiny_converted, tiny_tokenizer, 0.0, "tiny", 0.8, scores=True, alternatives=2)
    texts = []
    for i, (prompt, answer) in enumerate([("the quick", " brown fox"), ("12 + 7", " = 19"), ("dogs", " über dogs")]):
        ids = [tiny_tokenizer.encode(part, add_special_tokens=False) for part in (prompt, answer)]
        marks = [False] * len(ids[0]) + [True] * len(ids[1])
        texts.append(MapText(ids[0] + ids[1], marks, f"text-{i}", "abc"[i], forced=True))
    return DepthMap(recorder.facts, recorder.rows(texts))


@pytest.fixture(scope="session")
def made_up() -> Callable[..., MapRow]:
    """`made_up(depths, ...)`: a row whose depths are given, all of it an answer but the first token."""

    def make(
        depths: Sequence[int],
        pieces: Sequence[str] | None = None,
        id: str = "x",
        task: str = "text",
        group: str = "",
        layers: int = 6,
        **others: Any,
    ) -> MapRow:
        count = len(depths)
        words = list(pieces) if pieces is not None else [f" w{i}" for i in range(count)]
        options = {
            "forced": False,
            "token_ids": np.array([sum(map(ord, word)) for word in words], np.int32),
            "pieces": words,
            "generated": np.arange(count) > 0,
            "token_class": ["content word"] * count,
            "layers_used": np.array(depths, np.int16),
            "ran": np.arange(layers) < np.array(depths)[:, None],
        }
        return MapRow(id=id, task=task, group=group or id, **{**options, **others})

    return make


@pytest.fixture(scope="session")
def six_layers() -> Facts:
    """Facts of a model of 6 layers, of which the upper four are routed."""
    return Facts("tiny", "tiny", "0" * 64, "FlexiDepth", 0.8, 0.0, 6, (2, 3, 4, 5), 2, "float32", 2)
