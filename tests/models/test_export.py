"""An exported folder: opened by stock AutoModelForCausalLM it is the same model, at the same budget; bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from depthdial.core.dial import Curve
from depthdial.models import load
from depthdial.models.checkpoint import Plugin
from depthdial.models.export import export
from depthdial.models.families import FAMILIES
from depthdial.models.fingerprint import fingerprint

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
CURVE = Curve((-2.0, 0.0, 2.0), (0.7, 0.8, 0.95), (0.5, 0.2, 0.05))


@pytest.fixture
def model(tiny_model: Callable, adaptive: Callable) -> Callable[..., Any]:
    """`model(family)`: converted, with a curve, as `load` would give it."""

    def make(family: str = "llama", **config: Any) -> Any:
        made = adaptive(tiny_model(family, **config), weights="soft")
        curves = {"text": CURVE, "generated": CURVE}
        made.converted.plugin = Plugin("tiny", made.converted.method, fingerprint(made), curves, recommended=0.875)
        return made

    return make


def logits(model: Any, offset: float) -> torch.Tensor:
    model.converted.set(offset=offset)
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_the_same_model(family: str, tied: bool, model: Callable, tiny_tokenizer: Any, tmp_path: Path):
    whole = model(family, tie_word_embeddings=tied)
    folder = export(whole, tiny_tokenizer, tmp_path / "out", budget=0.7)
    opened: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert opened.config.model_type == f"depthdial_{family}" and opened.converted.method == whole.converted.method
    assert opened.converted.settings.offset == -2.0, "the dial stands where it was set"
    assert torch.equal(logits(opened, 0.3), logits(whole, 0.3))
    assert torch.equal(opened.route.keep(), whole.route.keep()) and not whole.route.keep().all()
    assert (
        opened.converted.plugin.curves == whole.converted.plugin.curves
        and opened.converted.plugin.base == whole.converted.plugin.base
    )


def test_load_opens_it_and_turns_its_dial(model: Callable, tiny_tokenizer: Any, tmp_path: Path):
    whole = model()
    folder = export(whole, tiny_tokenizer, tmp_path / "out")
    opened: Any = load(str(folder), dtype="float32", device="cpu")[0]
    assert opened.config.budget == 0.875 and opened.converted.settings.offset == 1.0, "the recommended budget"
    assert torch.equal(logits(load(str(folder), budget=0.8, dtype="float32", device="cpu")[0], 0.0), logits(whole, 0.0))
    again: Any = load(str(export(opened, tiny_tokenizer, tmp_path / "again", 0.7)), dtype="float32", device="cpu")[0]
    assert again.config.budget == 0.7 and torch.equal(logits(again, 0.0), logits(whole, 0.0))


def test_bad_input_is_refused(model: Callable, tiny_tokenizer: Any, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        export(model(), tiny_tokenizer, tmp_path / "full")
    with pytest.raises(ValueError, match=r"budget 0\.1 is outside"):
        export(model(), tiny_tokenizer, tmp_path / "out", budget=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["full"], "nothing half-written is left"
