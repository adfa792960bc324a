"""What cannot be converted is refused in one line, and stays as it was."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from depthdial import convert, load
from depthdial.methods import method_named
from depthdial.models.base import load_base

FLEXIDEPTH = method_named("flexidepth", {})


def _refusal(model: Any) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        convert(model, FLEXIDEPTH)
    return str(caught.value)


@pytest.mark.parametrize(
    "kind",
    ["LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForQuestionAnswering"],
)
def test_only_causal_language_models_are_converted(tiny_model: Callable[..., PreTrainedModel], kind: str) -> None:
    model = getattr(transformers, kind)(tiny_model("llama").config)
    before = set(model.state_dict())
    said = _refusal(model)
    assert kind in said and "AutoModelForCausalLM" in said
    assert set(model.state_dict()) == before and not hasattr(model, "route")


@pytest.mark.parametrize("what", ["smollm2-135m-instruct", None, nn.Linear(2, 2)], ids=["name", "None", "module"])
def test_what_is_no_model_is_called_what_it_is(what: object) -> None:
    assert type(what).__name__ in _refusal(what)


@pytest.fixture
def peft(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """peft, or, where it is not installed, its two classes as far as they matter: a model around, a layer inside."""
    if importlib.util.find_spec("peft") is not None:
        return importlib.import_module("peft")
    return _like_peft(monkeypatch)


def _like_peft(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    class Linear(nn.Module):
        def __init__(self, base_layer: nn.Linear):
            super().__init__()
            self.base_layer = base_layer

    class PeftModelForCausalLM(nn.Module):
        def __init__(self, model: PreTrainedModel, _config: object):
            super().__init__()
            self.base_model, self.config = model, model.config
            layers: Any = model.get_decoder().layers
            for layer in layers:
                layer.self_attn.v_proj = Linear(layer.self_attn.v_proj)

    Linear.__module__, PeftModelForCausalLM.__module__ = "peft.tuners.lora.layer", "peft.peft_model"
    module = ModuleType("peft")
    vars(module).update(get_peft_model=PeftModelForCausalLM, LoraConfig=dict)
    monkeypatch.setitem(sys.modules, "peft", module)
    return module


def test_a_base_inside_of_peft_is_refused(tiny_model: Callable[..., PreTrainedModel], peft: Any) -> None:
    base = tiny_model("llama")
    around = peft.get_peft_model(base, peft.LoraConfig(target_modules=["v_proj"]))
    assert "merge" in _refusal(around)
    said = _refusal(base)  # which has its layers now
    assert "v_proj" in said and "merge" in said


def test_a_folder_of_a_lora_adapter_names_the_merge(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    for opened in (load, load_base):
        with pytest.raises(ValueError, match=r"LoRA adapter without its base \(org/base\); merge it"):
            opened(str(tmp_path))


def test_a_causal_model_is_converted(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = convert(tiny_model("llama"), FLEXIDEPTH)
    with torch.no_grad():
        assert model(torch.arange(5)[None]).logits.isfinite().all()
