"""What the quality benchmark measures: plug-ins, the same methods without adapters, and the peer library's model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from depthdial.core.method import Method
from depthdial.engine.weights import matrices
from depthdial.evaluate.equal_cost import Knob, KnobMix
from depthdial.kernels.pack import int8_pack
from depthdial.methods import Dense, Random, Static, name_of
from depthdial.models import load, load_base
from depthdial.models.block import spine_of
from depthdial.models.calibration import Batch, Heldout
from depthdial.models.checkpoint import read
from depthdial.models.compare import HeadCompare
from depthdial.models.convert import convert
from depthdial.models.converted import Converted, converted_of
from depthdial.train.machine import compile_pieces
from heldout.data import HELD_OUT, Held
from heldout.text import HeldoutText, PluginRun, Run, Seen


@dataclass(frozen=True)
class Setup:
    """What all subjects share."""

    model: str
    dtype: str
    device: str
    compile: bool
    held: Held
    seed: int

    def batches(self, device: torch.device) -> list[Batch]:
        return [{name: column.to(device) for name, column in batch.items()} for batch in self.held.batches]


@dataclass(frozen=True)
class Subject:
    """One line of the table."""

    name: str
    trained: bool
    run: Run
    text: HeldoutText
    about: dict[str, Any]
    """Method and training, for the record."""
    search: Callable[[float], Knob]
    """What is known of its dial so far."""
    converted: Converted | None = None
    recommended: float | None = None


def plugins(setup: Setup, named: Sequence[tuple[str, str]]) -> Iterator[Callable[[], Subject]]:
    """The plug-ins, each loaded when called for."""
    for name, path in named:
        _check_training(name, path, setup.seed)
        yield lambda name=name, path=path: _plugin(setup, name, path)


def bare(setup: Setup, named: Sequence[tuple[str, str]]) -> Iterator[Callable[[], Subject]]:
    """The plug-ins of baselines without their adapters."""
    for name, path in named:
        _check_training(name, path, setup.seed)
        method = read(path).method
        if isinstance(method, Random | Static) and method.adapter_ratio:
            stripped = dataclasses.replace(method, adapter_ratio=0)
            yield lambda name=name, method=stripped: _bare(setup, f"{name}, no adapters", method)


def int8(setup: Setup) -> Subject:
    """The base with its layers' matrices in int8 and back, which skips nothing: what skipping has to be better than.
    Embeddings and head stay, and activations as they are (the native kernels round those of single tokens, too)."""
    model, _ = load_base(setup.model, setup.dtype, setup.device)
    converted = convert(model, Dense())
    heldout = Heldout(converted, setup.batches(model.device), setup.compile)
    teacher = heldout.teacher
    with torch.no_grad():
        for block in spine_of(converted).layers:
            for linear in matrices(block).values():
                assert isinstance(linear.weight, Tensor)
                packed = int8_pack(linear.weight)
                linear.weight.copy_(packed.values * packed.scale[:, None])
    rounded = Heldout(converted, heldout.batches, setup.compile)
    text = HeldoutText(rounded.batches, teacher, rounded.head, setup.held.groups)
    about = {"method": {"name": "dense", "weights": "int8"}}
    return Subject("int8 dense", True, PluginRun(rounded), text, about, _nothing_to_turn)


def _nothing_to_turn(cost: float) -> Knob:
    raise ValueError(f"out of reach: {cost} is below 1, and nothing is skipped")


def peers(setup: Setup, named: Sequence[tuple[str, str]], dials: Sequence[str]) -> Iterator[Callable[[], Subject]]:
    """The peer library's model under each of its dials."""
    for name, path in named:
        for dial in dials:
            yield lambda name=name, path=path, dial=dial: _peer(setup, f"{name}, {dial} dial", path, dial)


class PeerRun:
    """The peer (benchmarks/peers) as a `Run`. Where rows take turns, both settings are run and rows picked."""

    def __init__(self, peer: Any, batches: Sequence[Batch]):
        self.peer, self.batches = peer, batches

    def __call__(self, index: int, knob: Knob) -> Seen:
        if isinstance(knob, KnobMix):
            low, high = self(index, knob.low), self(index, knob.high)
            rows = torch.arange(len(low.cost), device=low.cost.device) + index * len(self.batches[0]["input_ids"])
            at_high = knob.at_high(rows)[:, None]
            hidden = torch.where(at_high[..., None], high.hidden, low.hidden)
            layers = torch.where(at_high.cpu(), high.layers, low.layers)
            return Seen(hidden, torch.where(at_high, high.cost, low.cost), layers)
        self.peer.offset = knob
        hidden, cost = self.peer(self.batches[index]["input_ids"], self.batches[index]["position_ids"])
        return Seen(hidden, cost, self.peer.keep.sum(0))


def _plugin(setup: Setup, name: str, path: str) -> Subject:
    plugin = read(path)
    model, _ = load(setup.model, path, dtype=setup.dtype, device=setup.device)
    about = {"method": _shown(plugin.method), "training": _public(plugin.training), "plugin": plugin.name}
    return dataclasses.replace(_ours(setup, name, model, about), trained=True, recommended=plugin.recommended)


def _bare(setup: Setup, name: str, method: Method) -> Subject:
    model, _ = load_base(setup.model, setup.dtype, setup.device)
    return _ours(setup, name, convert(model, method), {"method": _shown(method)})


def _ours(setup: Setup, name: str, model: Any, about: dict[str, Any]) -> Subject:
    if setup.compile:
        compile_pieces(model)
    heldout = Heldout(model, setup.batches(model.device), setup.compile)
    text = HeldoutText(heldout.batches, heldout.teacher, heldout.head, setup.held.groups)
    run, converted = PluginRun(heldout), converted_of(model)
    # a steady skip costs the same for every token, in steps of whole numbers: one batch tells
    search = text.search(run, 1.0, every=len(text.batches)) if converted.method.steady else text.search(run)
    return Subject(name, False, run, text, about, search, converted)


def _peer(setup: Setup, name: str, path: str, dial: str) -> Subject:
    from peers.economize_flexidepth import load_peer

    peer = load_peer(path, setup.model, setup.dtype, setup.device)
    peer.dial = dial
    base = peer.model.base_model
    batches = setup.batches(base.device)
    run, head = PeerRun(peer, batches), base.get_output_embeddings()
    assert isinstance(head, nn.Module)
    teacher = [run(i, math.inf).hidden for i in range(len(batches))]
    text = HeldoutText(batches, teacher, HeadCompare(head, compile=setup.compile), setup.held.groups)
    return Subject(name, True, run, text, {"method": {"name": name}}, text.search(run))


def _shown(method: Method) -> dict[str, Any]:
    return {"name": name_of(method), **dataclasses.asdict(method)}  # pyright: ignore[reportArgumentType]


def _public(training: dict[str, Any]) -> dict[str, Any]:
    """A plug-in's training without the places of one machine's files."""
    shown = {k: v for k, v in training.items() if k not in ("output", "start_from")}
    files = [PurePath(file).name for file in training.get("data", [])]
    return shown | {"data": files, "model": PurePath(training.get("model", "")).name}


def _check_training(name: str, path: str, seed: int) -> None:
    """Refuse a plug-in that was trained on what is held out here."""
    trained = read(path).training.get("seed", seed)
    if trained != seed:
        raise ValueError(
            f"plug-in {name} was trained with seed {trained}, so it held out other documents than seed {seed} does "
            f"(the share is {HELD_OUT}); compare plug-ins of one seed, and give it as --seed"
        )
