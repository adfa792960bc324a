"""Nothing mixes devices: what a GPU would run is run on `other`, a device that meets no CPU tensor (`other_device`)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.other_device import OTHER, There, other_device

from depthdial.core import layers
from depthdial.core.dial import Dials
from depthdial.engine.llm import LLM
from depthdial.engine.prefix import first_key
from depthdial.engine.request import Request
from depthdial.engine.runner import TorchRunner
from depthdial.engine.sampling import SamplingParams
from depthdial.engine.score import Scorer, Text
from depthdial.maps.passes import TextJob, passes_of
from depthdial.methods import METHODS, method_named
from depthdial.models import base as base_module
from depthdial.models.calibration import BaseProbe, Heldout
from depthdial.models.checkpoint import PARTS_FILE, attach
from depthdial.train import processes
from depthdial.train import run as run_module
from depthdial.train.config import TrainConfig
from depthdial.train.data import Record
from depthdial.train.generated import generated_curve
from depthdial.train.lesson import Lesson
from depthdial.train.run import train

IDS = list(range(5, 30))


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(layers, "WEIGHTS", (*layers.WEIGHTS, There))  # a GPU's tensors are torch's own
    with other_device() as device:
        yield device


def test_the_device_refuses_what_a_gpu_refuses(other: torch.device):
    there, here = torch.arange(6.0, device=other).view(2, 3), torch.ones(2, 3)
    assert there.device == other and torch.zeros(2).device.type == "cpu"
    for mixed in (
        lambda: there + here,
        lambda: here @ there.T,
        lambda: torch.cat([there, here]),
        lambda: torch.cat([there.sum().reshape(1), torch.zeros(1)]),
        lambda: torch.stack([there.sum(), torch.zeros(())]),
        lambda: torch.where(here > 0, there, 0.0),
        lambda: here.add_(there),
        lambda: torch.nn.functional.linear(there, here),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device=other, generator=torch.Generator())
    assert (there * torch.tensor(2.0)).tolist() == [[0, 2, 4], [6, 8, 10]], "a scalar of the CPU may come along"
    assert there[torch.tensor([1])].tolist() == [[3, 4, 5]] and there[[0]].device == other, "and an index"
    here.copy_(there)
    assert here.tolist() == there.cpu().tolist()
    weight = torch.nn.Parameter(there)
    (weight.square().sum() * 0.5).backward()
    assert weight.grad is not None and weight.grad.device == other and torch.equal(weight.grad.cpu(), there.cpu())


def engine(model: Any, tokenizer: Any) -> LLM:
    llm = LLM.of(model, tokenizer)
    assert isinstance(llm.engine.runner, TorchRunner)
    return llm


def finished(llm: LLM, **params: Any) -> list[Any]:
    offsets = (math.inf, math.inf if params.get("lossless") else 0.0)
    given = SamplingParams(**{"max_tokens": 4, "ignore_eos": True, "seed": 1, **params})
    requests = [Request(None, IDS, given, 1, Dials(offset), 4, first_key("test")) for offset in offsets]
    for request in requests:
        llm.engine.submit(request, llm.tokenizer)
    for _ in range(30):
        if all(request.done for request in requests):
            break
        llm.engine.step()
    outputs = [request.output() for request in requests]
    assert [output.error for output in outputs] == [None, None]
    return outputs


@pytest.mark.parametrize("method", METHODS)
def test_texts_are_those_of_the_cpu(tiny_model: Callable, tiny_tokenizer: Any, adapted: Callable, other, method: str):
    chosen = method_named(method, dict(METHODS[method].example))
    model: Any = adapted(tiny_model("llama", num_hidden_layers=6).to(other), chosen)
    llm = engine(model, tiny_tokenizer)
    for params in ({}, {"temperature": 1.0, "logprobs": 2}, {"lossless": True}):
        found = finished(llm, **params)
        assert found[0].cost == 1.0
        for output in found:
            ids = torch.tensor([[*IDS, *output.token_ids]], device=other)
            read = torch.arange(ids.shape[1], device=other)[None] < len(IDS)
            offset = math.inf if output is found[0] or "lossless" in params else 0.0
            model.converted.set(offset=offset, read=read)
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits[0]
            depths = model.route.layers_used[0].tolist()
            if "temperature" not in params:
                assert output.token_ids == logits[len(IDS) - 1 : -1].argmax(-1).tolist()
            if "lossless" not in params:
                assert output.depths == depths[len(IDS) - 1 : -1]
    plain: Any = adapted(tiny_model("llama", num_hidden_layers=6), chosen)
    with torch.no_grad():
        expected = plain(torch.tensor([IDS]), use_cache=False).logits
    model.converted.set(offset=0.0, read=None)
    with torch.no_grad():
        assert torch.allclose(
            model(torch.tensor([IDS], device=other), use_cache=False).logits.cpu(), expected, atol=1e-3
        )


def test_scores_readings_and_calibration(tiny_model: Callable, tiny_tokenizer: Any, adapted: Callable, packed, other):
    model: Any = adapted(tiny_model("llama").to(other), method_named("flexidepth", dict(METHODS["flexidepth"].example)))
    llm = engine(model, tiny_tokenizer)
    for offset in (math.inf, 0.0):
        ((score,),) = Scorer(llm.engine, tiny_tokenizer, 64).score([[Text(tuple(IDS), 3)]], Dials(offset))
        assert math.isfinite(score.logprob)
        dials = Dials(offset)
        slow, fast = (passes_of(model, tiny_tokenizer, dials, way, False, True, 2, 64) for way in (None, llm.engine))
        jobs = [TextJob(IDS, len(IDS))]
        for wanted, found in zip(slow(jobs), fast(jobs), strict=True):
            assert (wanted.ran == found.ran).all() and found.expectation is not None
    batch = {name: tensor.to(other) for name, tensor in packed().items()}
    cost, kl = Heldout(model, [batch]).measure(0.0)
    assert 0.5 < cost < 1 and kl > 0
    probe = BaseProbe(tiny_model("llama").to(other), [batch])
    assert len(probe.block_influence()) == 6 and probe.divergence([2]) > 0


def test_sums_of_training_are_on_one_device(tiny_model: Callable, adapted: Callable, packed, other):
    """Also without a budget: processes add them up in one message."""
    model = adapted(tiny_model("llama").to(other), method_named("flexidepth", dict(METHODS["flexidepth"].example)))
    lesson = Lesson(model, "distill", None)
    lesson(**{name: tensor.to(other) for name, tensor in packed().items()})["loss"].backward()
    assert torch.cat([value.reshape(-1) for value in lesson.totals.values()]).device == other
    assert processes.world() == 1


@pytest.mark.slow
def test_the_dial_for_generated_tokens(tiny_plugin: Path, tiny_model, tiny_tokenizer, other, monkeypatch):
    monkeypatch.setattr("depthdial.train.generated.TOKENS", 4)
    model: Any = attach(tiny_model("llama").to(other), tiny_plugin)
    curve = generated_curve(model, tiny_tokenizer, [Record("fox", text="the quick brown fox")], 1)
    assert len(curve.offsets) > 1 and 0.5 < curve.costs[0] < 1


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, monkeypatch) -> TrainConfig:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(OTHER))  # where the Trainer looks
    monkeypatch.setattr(base_module, "_device", lambda name: OTHER)
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"{i} + {i} = {2 * i}"} for i in range(80)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig(
        model=str(tiny_folder), data=(str(tmp_path / "sums.jsonl"),), output=str(tmp_path / "run"), budget=0.9,
        highest=0.95, steps=2, fit_steps=1, batch=2, length=32, heldout_tokens=64, generated_tokens=0, save_every=1,
        dtype="float32",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"alpha": 0.1, "start": 0.5}], ids=["budget", "alpha"])
def test_training_and_its_resume(config: TrainConfig, other, monkeypatch, fields: dict[str, Any]):
    """Fit, train, checkpoint, centre, calibrate, save; again from the last checkpoint, and from the one before it."""
    monkeypatch.setattr(run_module, "POINTS", 4)
    told = dataclasses.replace(config, fields=fields, budget=None if fields else 0.9)
    first = load_file(train(told) / PARTS_FILE)
    for lost in (False, True):
        if lost:
            (Path(config.output) / "checkpoints" / "checkpoint-2" / "optimizer.pt").unlink()
        again = load_file(train(told, resume=True) / PARTS_FILE)
        assert again.keys() == first.keys() and all(tensor.isfinite().all() for tensor in again.values())
        # that a resumed step gives the same bits is tested on the CPU
        assert lost or all(torch.equal(tensor, again[name]) for name, tensor in first.items())
