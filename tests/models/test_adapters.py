"""peft on converted models: adapters travel between a base and its conversion, and reach routers and adapters, too."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.laws.examples import WITH_PARTS, example

import depthdial
from depthdial.core.layers import Adapter, Router
from depthdial.engine.llm import LLM, SamplingParams
from depthdial.models.checkpoint import attach, parts_of, read
from depthdial.models.convert import convert
from depthdial.models.families import FAMILIES
from depthdial.models.fingerprint import fingerprint

peft = pytest.importorskip("peft")

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
each_family = pytest.mark.parametrize("family", FAMILIES)
each_method = pytest.mark.parametrize("method", WITH_PARTS)


def made(base: Any, method: str) -> Any:
    torch.manual_seed(3)
    model: Any = convert(base, example(method))
    for unit in model.converted.routed.values():
        for weight in unit.parts.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def lora(model: Any, **config: Any) -> Any:
    """With a LoRA whose second matrix is not zero, as after training."""
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, **config))
    generator = torch.Generator().manual_seed(4)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1, generator=generator)
    return model.eval()


@each_family
@each_method
def test_names_are_the_bases(tiny_model: Callable, family: str, method: str):
    base = tiny_model(family)
    names = {name: weight.shape for name, weight in base.named_parameters()}
    model = made(base, method)
    assert {n: w.shape for n, w in model.named_parameters() if ".parts." not in n} == names


@each_family
@each_method
def test_a_lora_travels_both_ways(tiny_model: Callable, family: str, method: str, tmp_path: Path):
    targets = ["q_proj", "v_proj", "down_proj"]
    trained = lora(tiny_model(family), target_modules=targets)
    trained.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "found missing adapter keys"
        model = peft.PeftModel.from_pretrained(made(tiny_model(family), method), tmp_path / "base").eval()
        model.converted.set(offset=float("inf"))
        assert torch.equal(logits(model), logits(trained))
        model.save_pretrained(tmp_path / "converted")
        back = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "converted").eval()
        assert torch.equal(logits(back), logits(trained))
    loaded = made(tiny_model(family), method)
    loaded.load_adapter(tmp_path / "converted")
    loaded.converted.set(offset=float("inf"))
    assert torch.equal(logits(loaded.eval()), logits(trained))


EXPERTS = ("qwen3_moe", "mixtral", "olmoe")
"""Whose experts peft's PiSSA cannot split, of the base alone neither."""


@each_family
@each_method
@pytest.mark.parametrize("start", [True, "pissa"])
def test_all_linear_layers_are_called(tiny_model: Callable, family: str, method: str, start: Any):
    model = made(tiny_model(family), method)
    before = logits(model)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=start)
    if start == "pissa" and family in EXPERTS:
        with pytest.raises(AttributeError, match="Experts' object has no attribute 'weight'"):
            peft.get_peft_model(tiny_model(family), config)
        return
    model = peft.get_peft_model(copy.deepcopy(model), config).eval()
    assert any(".parts." in name for name in model.targeted_module_names)
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)  # PiSSA only splits weights
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    moved = logits(model)
    assert not torch.allclose(moved, before, atol=1e-2)
    model(IDS, labels=IDS).loss.backward()
    silent = [n for n, w in model.named_parameters() if w.requires_grad and w.grad is None]
    if method == "flexidepth":  # other methods' routers learn from their own loss, in training
        assert not silent
    assert all(".router." in name or ".predictor." in name for name in silent)
    torch.testing.assert_close(logits(model.merge_and_unload()), moved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", ["norm_tanh", "tanh_norm"])
def test_a_routers_and_an_adapters_own_layers_may_have_loras(order: str):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    for part in (Router(16, 4, 1e-5, order), Adapter(16, 8)):
        torch.nn.init.normal_(part.get_parameter("head.weight" if isinstance(part, Router) else "down.weight"))
        names = [name for name, layer in part.named_modules() if isinstance(layer, torch.nn.Linear)]
        for name in names:
            changed = lora(copy.deepcopy(part), target_modules=[name], bias="none")
            found = changed(x)
            assert not torch.allclose(found, part(x), atol=1e-3), name
            torch.testing.assert_close(changed.merge_and_unload()(x), found)


def test_the_engine_refuses_or_calls_what_it_cannot_read(tiny_model: Callable, tiny_tokenizer: Any):
    model = made(tiny_model("llama"), "flexidepth")
    prompt = IDS[0].tolist()
    for targets in (["enc"], ["head"], ["down"]):  # "down": an adapter's, not the MLP's
        adapted = lora(copy.deepcopy(model), target_modules=targets)
        llm = LLM.of(adapted.base_model.model, tiny_tokenizer)
        (found,) = llm.generate([prompt], SamplingParams(8))
        merged = LLM.of(adapted.merge_and_unload(), tiny_tokenizer)
        (expected,) = merged.generate([prompt], SamplingParams(8))
        pieces = [[(piece.token_id, piece.depth) for piece in out.samples[0].pieces] for out in (found, expected)]
        assert pieces[0] == pieces[1] and found.prompt_depths == expected.prompt_depths
    adapted = lora(copy.deepcopy(model), target_modules=["q_proj"]).base_model.model
    with pytest.raises(ValueError, match=r"q_proj is a Linear that the engine cannot read.*merge_and_unload"):
        LLM.of(adapted, tiny_tokenizer)


def step(model: Any) -> None:
    """One of an optimizer, on what is not frozen."""
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.5)
    (model(IDS, labels=IDS).loss + depthdial.method_loss(model)).backward()
    optimizer.step()
    model.zero_grad()


def test_a_plugin_is_trained_over_a_lora_that_the_base_has(tiny_model: Callable, tmp_path: Path):
    """The base is tuned first. The plug-in is of the base, and with the LoRA it is what it was in training."""
    lora(tiny_model("llama"), target_modules=["q_proj", "down_proj"]).save_pretrained(tmp_path / "lora")
    model = peft.PeftModel.from_pretrained(made(tiny_model("llama"), "flexidepth"), tmp_path / "lora")
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if ".parts." not in name}
    before = {name: tensor.clone() for name, tensor in parts_of(model.get_base_model()).items()}
    for name, weight in model.named_parameters():
        weight.requires_grad_(".parts." in name)
    step(model)
    curve = depthdial.calibrate(model, [IDS])
    folder = depthdial.save(model, tmp_path / "plugin")
    assert all(torch.equal(weight, frozen[name]) for name, weight in model.named_parameters() if name in frozen)
    assert any(not torch.equal(t, before[name]) for name, t in parts_of(model.get_base_model()).items())
    assert read(folder).base == fingerprint(tiny_model("llama")) and read(folder).curves["text"] == curve
    again = attach(tiny_model("llama"), folder).eval()
    alone = logits(again)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "lora").eval()
    assert torch.equal(logits(again), logits(model.eval())) and not torch.allclose(logits(again), alone, atol=1e-3)
    depthdial.set_budget(again, curve.floor)
    assert logits(again) is not None and again.route.cost() < curve.costs[-1]


def test_a_lora_is_trained_over_a_plugin(tiny_model: Callable, tiny_folder: Path, tiny_plugin: Path, tmp_path: Path):
    """The plug-in stays as it is, and is found again under the LoRA."""
    plugged: Any = depthdial.load(str(tiny_folder), str(tiny_plugin), None, "float32", "cpu")[0]
    before = {name: tensor.clone() for name, tensor in parts_of(plugged).items()}
    model = peft.get_peft_model(plugged, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for _ in range(2):
        step(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts_of(plugged).items())
    model.save_pretrained(tmp_path / "lora")
    depthdial.save(model, tmp_path / "plugin")
    assert read(tmp_path / "plugin") == read(tiny_plugin)
    again: Any = depthdial.load(str(tiny_folder), str(tmp_path / "plugin"), None, "float32", "cpu")[0]
    alone = logits(again)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "lora").eval()
    assert torch.equal(logits(again), logits(model.eval())) and not torch.equal(logits(again), alone)


def test_parts_under_a_lora_are_merged_before_they_are_saved(tiny_model: Callable, tmp_path: Path):
    model = lora(made(tiny_model("llama"), "flexidepth"), target_modules="all-linear")
    with pytest.raises(ValueError, match=r"a LoRA is on the plug-in's own parts: merge it into them first"):
        depthdial.save(model, tmp_path / "plugin")
    assert not (tmp_path / "plugin").exists()
