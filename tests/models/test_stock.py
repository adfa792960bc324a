"""The untouched base as a stock model: nothing of ours is left, and a loop is a layer for each visit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from depthdial.methods import FlexiDepth, Recursive
from depthdial.models.convert import convert, is_converted
from depthdial.models.families import FAMILIES
from depthdial.models.stock import stock

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def test_a_plain_base_is_itself(tiny_model: Callable):
    base = tiny_model("llama")
    expected = logits(base)
    model = stock(convert(base, FlexiDepth(first=2)))
    assert model is base and not is_converted(model) and torch.equal(logits(model), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [0, 3])
def test_a_loop_is_a_layer_for_each_visit(tiny_model: Callable, adapted: Callable, family: str, rank: int):
    model: Any = adapted(tiny_model(family), Recursive(loops=2, first=1, last=5, rank=rank))
    model.converted.set(offset=float("inf"))
    whole: PreTrainedModel = stock(model)
    assert type(whole) is type(model) and not is_converted(whole) and whole.config.num_hidden_layers == 10
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-4, atol=1e-4)
    out = whole.generate(IDS, max_new_tokens=4, do_sample=False)  # pyright: ignore[reportCallIssue]
    assert torch.equal(out, model.generate(IDS, max_new_tokens=4, do_sample=False))
