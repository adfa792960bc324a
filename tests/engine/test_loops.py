"""The engine on blocks that are visited again: the reference's text, natively; a loop that is not run is not read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from depthdial.core.dial import Dials
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.models.dial import set_budget
from depthdial.models.retrofit import retrofit

PROMPTS = [[5, 6, 7, 8, 9], list(range(40, 120)), [11]]
LENGTH = 16


@pytest.fixture
def llm(tiny_model: Callable, tiny_tokenizer: Any) -> LLM:
    """Two blocks for the six layers of a tiny model."""
    model: Any = retrofit(tiny_model("llama", max_position_embeddings=256), 3, "average", 8).model
    set_budget(model, None)
    return LLM.of(model, tiny_tokenizer)


def dialled(llm: LLM, offset: float, read: float | None = None) -> LLM:
    vars(llm.budgets).update(dials=lambda *_: Dials(offset, read))
    return llm


@pytest.mark.parametrize("read", [None, math.inf])
@pytest.mark.parametrize(("offset", "loops"), [(-2.0, 1), (-1.0, 2), (0.0, 3), (math.inf, 3)])
def test_a_text_is_the_references_and_runs_natively(llm: LLM, offset: float, loops: int, read: float | None):
    outs = dialled(llm, offset, read).generate(
        PROMPTS, SamplingParams(max_tokens=LENGTH, ignore_eos=True, temperature=0)
    )
    model: Any = llm.model
    model.converted.set(offset=offset, read_offset=read)
    for prompt, out in zip(PROMPTS, outs, strict=True):
        ids = torch.tensor([prompt])
        given = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "do_sample": False}
        assert (
            out.token_ids
            == model.generate(ids, attention_mask=torch.ones_like(ids), **given)[0, len(prompt) :].tolist()
        )
        written = out.depths if read is None else out.depths[1:]  # the first follows from the prompt
        assert set(written) == {2 * loops} and set(out.prompt_depths) == {2 * loops if read is None else 6}
    stats = llm.stats
    assert stats.native_tokens == stats.tokens and not stats.in_torch
    prompts = sum(map(len, PROMPTS)) if read is not None else 0
    later = [stats.tokens if visit < 2 * loops else prompts for visit in range(6)]
    assert stats.rows.tolist() == stats.attn_rows.tolist() == later


def test_weights_are_read_once_for_each_visit(llm: LLM):
    """And so are the changes: they are merged."""
    read = []
    for offset in (-2.0, -1.0, 0.0):
        before = llm.stats.weight_bytes
        dialled(llm, offset).generate([[5, 6, 7]], SamplingParams(max_tokens=20, ignore_eos=True))
        read.append(llm.stats.weight_bytes - before)
    ledger: Any = llm.model.converted.ledger
    loop = 20 * 4 * sum(layer.total for layer in ledger.layers[:2])
    assert read[1] - read[0] == pytest.approx(loop, rel=0.01) == read[2] - read[1]
