"""The real SmolLM2-135M-Instruct: at budget 1.0 the text is that of Hugging Face's `generate`, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from depthdial.engine.llm import LLM, SamplingParams
from depthdial.models.base import load_base
from depthdial.models.shipped import shipped

MODEL = "smollm2-135m-instruct"
PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhat is 17 plus 25?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at 100 degrees Celsius, and freezes at",
]

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_at_full_depth_is_hugging_faces_generate(dtype):
    model, tokenizer = load_base(MODEL, dtype, "cpu")
    base: Any = model  # transformers' types say that `generate` is a Tensor
    plugin = "default" if shipped() else None
    # max_batch=1: alone, as `generate` below is, since bf16 rounds by shape
    llm = LLM(MODEL, plugin, budget=1.0, dtype=dtype, device="cpu", max_batch=1)
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=64))
    for prompt, out in zip(PROMPTS, outputs, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        expected = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
        assert out.cost == 1.0 and set(out.depths) == {30}
        wanted = expected[0, ids.shape[1] :].tolist()
        if dtype == "float32":
            assert out.token_ids == wanted
        else:
            assert near_tie(base, ids, wanted, out.token_ids)


def near_tie(base: Any, ids: torch.Tensor, wanted: list[int], got: list[int]) -> bool:
    """Are two greedy texts equal up to a token that the base itself cannot tell apart in bf16?"""
    at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), None)
    if at is None:
        return wanted == got
    text = torch.cat([ids, torch.tensor([wanted[:at]], dtype=torch.long)], 1)
    logits = base(text).logits[0, -1].float()
    spacing = 2.0 ** (logits.max().log2().floor() - 7)  # of bf16 numbers of that size
    return bool(logits[wanted[at]] - logits[got[at]] <= 3 * spacing)


@pytest.mark.skipif(not shipped(), reason="no plug-in is shipped yet")
def test_a_batch_gives_each_prompt_what_it_gets_alone():
    llm = LLM(MODEL, dtype="float32", device="cpu")
    params = SamplingParams(max_tokens=24)
    for prompt, together in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
        (alone,) = llm.generate(prompt, params)
        assert (together.token_ids, together.depths) == (alone.token_ids, alone.depths)
        assert together.prompt_depths == alone.prompt_depths
        assert together.depths[0] == together.prompt_depths[-1]
