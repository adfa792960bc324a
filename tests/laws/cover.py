"""Which methods meet which families: all of them in slow tests, and in fast ones a few for each family.

There the plainest family and the one with most norms meet every method; of the others each meets three that are not
the same from family to family, so that every method meets all that is odd about families somewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from depthdial.models.families import FAMILIES

PLAIN, ODD = "llama", "gemma3_text"
EACH = 3
"""Methods that a family meets in fast tests."""
MIXTURES = ("qwen3_moe", "gpt_oss", "mixtral", "olmoe")
"""Families with experts, which run in torch."""
NATIVE = tuple(family for family in FAMILIES if family not in MIXTURES)


def fast(methods: Sequence[str], family: str) -> list[str]:
    """The methods that a family meets in fast tests."""
    if family in (PLAIN, ODD):
        return list(methods)
    begin, step = list(FAMILIES).index(family), max(1, len(methods) // EACH)
    return [methods[(begin + i * step) % len(methods)] for i in range(EACH)]


def marks(methods: Sequence[str], method: str, family: str) -> list[Any]:
    """Of a case of this method and family: slow, where no fast test needs it."""
    return [] if method in fast(methods, family) else [pytest.mark.slow]


def product(methods: Sequence[str], families: Sequence[str] = tuple(FAMILIES)) -> pytest.MarkDecorator:
    """`method` and `family`, by pairs."""
    cases = [
        pytest.param(method, family, id=f"{method}-{family}", marks=marks(methods, method, family))
        for family in families
        for method in methods
    ]
    return pytest.mark.parametrize(("method", "family"), cases)
