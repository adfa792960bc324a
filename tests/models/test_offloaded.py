"""Weights that accelerate brings when they are needed: from the CPU, from a disk, before and after conversion."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file
from tests.laws.examples import WITH_PARTS, example
from torch import nn
from transformers import AutoModelForCausalLM

from depthdial.models.checkpoint import PARTS_FILE, attach, save
from depthdial.models.convert import convert
from depthdial.models.families import FAMILIES
from depthdial.models.fingerprint import fingerprint

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", WITH_PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_converted_model_offloaded_is_the_same(
    tiny_model: Callable, family: str, method: str, dtype: torch.dtype, tmp_path: Path
):
    model = made(tiny_model(family), method).to(dtype)
    expected, keep = logits(model), model.route.keep()
    assert model.converted.program.skips != bool(keep.all())
    on_cpu, on_disk = copy.deepcopy(model), copy.deepcopy(model)
    accelerate.cpu_offload(on_cpu, execution_device=torch.device("cpu"))
    accelerate.disk_offload(on_disk, str(tmp_path), execution_device=torch.device("cpu"))
    for each in (on_cpu, on_disk):
        assert {weight.device.type for weight in each.parameters()} == {"meta"}
        assert torch.equal(logits(each), expected) and torch.equal(each.route.keep(), keep)


@pytest.fixture
def with_layers_on_disk(tiny_model: Callable, tmp_path: Path) -> Any:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    around = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    places = {**dict.fromkeys(around, "cpu"), **{f"model.layers.{i}": "disk" if i > 2 else "cpu" for i in range(6)}}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=places, offload_folder=tmp_path / "away", dtype=torch.float32
    )
    assert {weight.device.type for weight in model.parameters()} == {"cpu", "meta"}
    return model


def test_a_base_with_layers_on_disk_takes_a_plugin(with_layers_on_disk: Any, tiny_model: Callable, tmp_path: Path):
    whole = made(tiny_model("llama"), "flexidepth")
    folder = save(whole, tmp_path / "plugin")
    assert fingerprint(with_layers_on_disk) == fingerprint(whole)
    model = attach(with_layers_on_disk, folder)
    assert torch.equal(logits(model), logits(whole))
    model.save_pretrained(tmp_path / "saved")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(opened), logits(whole))


def test_offloaded_parts_are_saved(tiny_model: Callable, tmp_path: Path):
    model = made(tiny_model("llama"), "flexidepth")
    expected = load_file(save(model, tmp_path / "here") / PARTS_FILE)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    found = load_file(save(model, tmp_path / "away") / PARTS_FILE)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)


def test_weights_without_values_are_named(tiny_model: Callable):
    with pytest.raises(ValueError, match=r"weight holds no values"):
        fingerprint(tiny_model("llama").to("meta"))


@pytest.mark.parametrize("method", WITH_PARTS)
def test_dynamic_quantisation_reaches_the_parts(tiny_model: Callable, method: str):
    model = made(tiny_model("llama"), method)
    expected = logits(model)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    kinds = {type(m).__name__ for unit in quantised.converted.routed.values() for m in unit.parts.modules()}
    assert kinds & {"Linear", "DynamicQuantizedLinear"} and not any(
        type(m) is nn.Linear for unit in quantised.converted.routed.values() for m in unit.parts.modules()
    )
    found = logits(quantised)
    assert found.isfinite().all() and not torch.equal(found, expected)
    base = torch.ao.quantization.quantize_dynamic(tiny_model("llama"), {nn.Linear}, dtype=torch.qint8)
    quantised.converted.set(offset=float("inf"))
    assert torch.equal(logits(quantised), logits(base))
