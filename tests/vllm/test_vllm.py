"""vLLM over exported models: tokens, decisions and work are those of the dense reference, on one rank and on two."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from depthdial.models import load
from depthdial.models.dial import offset_for
from depthdial.models.export import export
from depthdial.serve.vllm.shape import BUDGET, PROMPT_BUDGET

STORY = "Once upon a time there was a small robot who wanted to learn how to cook. " * 6 + "One day"

OFFSET = 0.0
"""Of the recommended budget, by the curve of the exported models."""
MAKES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"fields": {"first": 1, "router_ratio": 4, "adapter_ratio": 4, "start": 0.0, "weights": "soft"}},
}


def texts(seed: int, *lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]


def batches() -> list[list[list[int]]]:
    """Two batches; the second begins like the first. Prompts of 5 to 130 tokens, chunks of at most 48."""
    first = texts(0, 5, 130, 33, 64, 47)
    return [first, [first[1][:100] + texts(1, 9)[0], first[3], *texts(2, 21)]]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("family", MAKES)
def test_equal_to_the_reference(family: str, ranks: int, exported: Callable, vllm: Callable, agrees: Callable):
    folder = exported(family, **MAKES[family])
    found = vllm(folder, batches(), ranks)
    total, skips = agrees(folder, batches(), found, offset=OFFSET)
    assert 0.1 < skips / total < 0.9, "both kinds of decision occur"
    cached = [cached for _, _, cached in found["batches"][1]["outputs"]]
    assert max(cached[:2]) >= 32 and cached[2] == 0, "the prefix cache is used"


def test_a_prompt_that_skips_too(exported: Callable, vllm: Callable, agrees: Callable):
    """The form of the papers: one dial for all; and a prompt at a dial of its own, in passes that mix both."""
    folder = exported("llama")
    total, skips = agrees(folder, batches(), vllm(folder, batches(), env={PROMPT_BUDGET: "same"}), OFFSET, read=OFFSET)
    assert 0.1 < skips / total < 0.9
    found = vllm(folder, batches(), overrides={"prompt_budget": 0.875})
    assert agrees(folder, batches(), found, OFFSET, read=1.0)[1] > 0


def test_a_model_routed_by_whole_layers(exported: Callable, vllm: Callable, agrees: Callable):
    folder = exported("llama", "skiplayer", fields={"first": 1})
    total, skips = agrees(folder, batches(), vllm(folder, batches()), offset=OFFSET)
    assert 0.1 < skips / total < 0.9


def test_a_decision_that_is_plain_python(exported: Callable, vllm: Callable, agrees: Callable):
    folder = exported("llama", "random", fields={"first": 2, "rate": 0.5, "adapter_ratio": 4})
    total, skips = agrees(folder, batches(), vllm(folder, batches()), offset=OFFSET)
    assert 0.1 < skips / total < 0.9


def test_a_wrong_way_shows(exported: Callable, vllm: Callable, agrees: Callable):
    """The checks fail where one token takes the wrong way through one layer, or another token is told."""
    folder, few = exported("llama"), [texts(4, 30)]
    found = vllm(folder, few)
    agrees(folder, few, found, offset=OFFSET)
    ((request, steps, cached),) = found["batches"][0]["outputs"]
    found["batches"][0]["outputs"] = [(request, [*steps[:-1], (steps[-1][0] ^ 1, steps[-1][1])], cached)]
    with pytest.raises(AssertionError, match="another token"):
        agrees(folder, few, found, offset=OFFSET)
    found["batches"][0]["outputs"] = [(request, steps, cached)]
    for ranks in found["batches"][0]["decisions"]:
        last = next(one for one in reversed(ranks) if one["positions"][0] >= 30)  # a written token
        last["ran"][0][3] = not last["ran"][0][3]
    with pytest.raises(AssertionError, match="layer 3: decided otherwise"):
        agrees(folder, few, found, offset=OFFSET)


def test_the_budget_is_overridden(exported: Callable, vllm: Callable, agrees: Callable):
    """By --hf-overrides, and over it by the environment. Prompts are read in full."""
    folder = exported("llama", budget=0.7)
    few = [texts(3, 40)]
    assert agrees(folder, few, vllm(folder, few), offset=-1.0)[1] > 0
    agrees(folder, few, vllm(folder, few, overrides={"budget": 0.875}), offset=1.0)
    found = vllm(folder, few, overrides={"budget": 0.875}, env={BUDGET: "1.0"})
    assert agrees(folder, few, found, offset=math.inf) == (0, 0), "the untouched base"


@pytest.mark.real
def test_the_real_model_with_the_shipped_plugin(vllm: Callable, agrees: Callable, tmp_path: Path):
    model, tokenizer = load("smollm2-135m-instruct", dtype="float32", device="cpu")
    folder = export(model, tokenizer, tmp_path / "smollm2")
    budget = json.loads((folder / "config.json").read_text())["budget"]
    prompts = [tokenizer(text)["input_ids"] for text in ("The capital of France is", "def fibonacci(n):", STORY)]
    offset = offset_for(model, budget, "generated")
    total, skips = agrees(folder, [prompts], vllm(folder, [prompts], tokens=32), offset)
    assert 0.1 < skips / total < 0.5, "about what the plug-in recommends"
