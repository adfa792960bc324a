"""What tests of the speed benchmark share: a clock that tells what a test says, and a tiny engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from depthdial.engine.llm import LLM


class Ticks:
    """A clock that goes on by one second each time it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture(scope="session")
def tiny_llm(tiny_folder, tiny_plugin) -> Callable[..., LLM]:
    """`tiny_llm(max_batch=4, ...)`: the tiny model with its plug-in, without a prefix cache."""

    def make(**kwargs) -> LLM:
        settings = {"dtype": "float32", "device": "cpu", "max_batch": 4, "cache_tokens": 1024, **kwargs}
        return LLM(str(tiny_folder), str(tiny_plugin), prefix_cache=False, **settings)

    return make
