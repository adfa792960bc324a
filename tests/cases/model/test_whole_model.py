"""The shipped model saved, pickled and copied as any Hugging Face model may be."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from depthdial import load

pytestmark = pytest.mark.real


@torch.no_grad()
def test_saved_pickled_and_copied_it_gives_the_same_logits(tmp_path: Path):
    model, tokenizer = load("smollm2-135m-instruct", budget=0.8, dtype="float32", device="cpu")
    ids = tokenizer("The capital of France is", return_tensors="pt")
    expected = model(**ids).logits
    model.save_pretrained(tmp_path)
    pair: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    again, report = pair
    assert not any(report.values())
    for other in (again, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other(**ids).logits, expected)


@torch.no_grad()
def test_float16_is_the_same_base(tmp_path: Path):
    texts = {}
    for dtype in ("float16", "bfloat16"):
        model, tokenizer = load("smollm2-135m-instruct", budget=0.8, dtype=dtype, device="cpu")
        ids = tokenizer("The capital of France is", return_tensors="pt")
        logits = model(**ids).logits
        assert logits.isfinite().all() and 0.7 < model.route.cost() < 1.0  # pyright: ignore
        texts[dtype] = tokenizer.decode(logits[0, -1].argmax())
    assert texts["float16"] == texts["bfloat16"] == " Paris"
