"""Hugging Face as a subject."""

from __future__ import annotations

import pytest
import torch

from depthdial.evaluate.speed.huggingface import HuggingFace
from depthdial.evaluate.speed.subjects import Regime


def test_as_many_tokens_as_asked_for_whatever_ends_the_text(tiny_model, ticks):
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7]])
    first = model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1].item()
    model.generation_config.eos_token_id = first  # its first token would end it
    run = HuggingFace(model, "fp32", clock=ticks).run([[5, 6, 7], [8]], 6)
    assert run.steps == 5 and run.tokens == 10 and run.first == 2.0 and run.rest == 5.0  # its prompt is streamed, too
    assert run.cost(Regime("decode", 2, 3, 6)) is None


def test_compiled_is_for_decoding_and_may_be_missing(tiny_model, ticks):
    compiled = HuggingFace(tiny_model(), "fp32", compiled=True, clock=ticks)
    assert compiled.optional and compiled.takes(Regime("decode", 1, 4, 4))
    assert not compiled.takes(Regime("prefill", 1, 4, 1))


@pytest.mark.slow
def test_compiled_runs(tiny_model, ticks):
    run = HuggingFace(tiny_model(), "fp32", compiled=True, clock=ticks).run([[5, 6, 7]], 4)
    assert run.steps == 3
