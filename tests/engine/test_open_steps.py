"""A method that does not say in operations what it does keeps the native pass: Python decides at its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from depthdial.core.dial import Dials
from depthdial.core.lowered import Lowered
from depthdial.core.method import Parts
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.engine.native import NativeRunner
from depthdial.methods import FlexiDepth, SkipLayer

FIELDS = {"first": 2, "start": 0.0, "router_ratio": 4, "adapter_ratio": 4}
TEXTS = [[5 + 7 * i % 250 for i in range(length)] for length in (40, 1, 90, 17)]


@dataclass(frozen=True)
class Silent(FlexiDepth):
    """Says nothing of its steps from `quiet` on."""

    quiet: ClassVar[int] = 0

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        return None if s >= self.quiet else super().lowered(parts, s)


@dataclass(frozen=True)
class Half(Silent):
    """Says what stands in for a layer, but not when."""

    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        return None if "router" in parts else FlexiDepth.lowered(self, parts, s)


@dataclass(frozen=True)
class Late(Silent):
    quiet = 6


@dataclass(frozen=True)
class Quiet(SkipLayer):
    def lowered(self, parts: Parts, s: int) -> Lowered | None:
        return None


@pytest.fixture
def on(tiny_model: Callable, tiny_tokenizer: Any, adapted: Callable) -> Callable[..., LLM]:
    def make(method: Any, dials: Dials, dtype: torch.dtype = torch.float32) -> LLM:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "max_position_embeddings": 256}
        llm = LLM.of(adapted(tiny_model("llama", **sizes).to(dtype), method), tiny_tokenizer)
        vars(llm.budgets).update(dials=lambda *_: dials)
        return llm

    return make


@pytest.mark.parametrize("dials", [Dials(0.0), Dials(-0.4, math.inf)])
@pytest.mark.parametrize(
    ("said", "silent"),
    [
        *((FlexiDepth(**FIELDS, weights=w), kind(**FIELDS, weights=w)) for w in ("soft", "hard")
          for kind in (Silent, Half, Late)),
        *((SkipLayer(units=units), Quiet(units=units)) for units in (("layer",), ("attn", "mlp"), ("mlp",), ("attn",))),
    ],
)  # fmt: skip
def test_texts_and_counts_are_those_of_what_is_said(on: Callable[..., LLM], said: Any, silent: Any, dials: Dials):
    found = []
    for method in (said, silent):
        llm = on(method, dials)
        runner = llm.engine.runner
        assert isinstance(runner, NativeRunner)
        assert (runner._open is not None) == (method is silent)
        outputs = llm.generate(TEXTS, SamplingParams(max_tokens=20, ignore_eos=True))
        assert llm.stats.native_tokens == llm.stats.tokens
        found.append(([(out.token_ids, out.depths, out.prompt_depths) for out in outputs], llm.stats))
    (texts, stats), (others, counted) = found
    assert texts == others
    for name in ("rows", "attn_rows", "mlp_rows", "kv_rows", "adapter_rows"):
        assert getattr(stats, name).tolist() == getattr(counted, name).tolist(), name
    assert (stats.attn_rows + stats.mlp_rows).sum() < 2 * stats.tokens * llm.layers, "something was skipped"
