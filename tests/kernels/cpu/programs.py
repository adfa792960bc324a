"""Programs over a tiny model, and the laws that hold for a native pass of any: it is its definition, it counts what it
did, and it is the same where Python decides in the middle what a table decided before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tests.kernels import definition
from torch import Tensor

from depthdial.kernels.cpu.native import Counters, NativeModel
from depthdial.kernels.passing import Decided, PassTokens, Waiting
from depthdial.kernels.tensors import (
    END,
    Act,
    AdapterTensors,
    Branch,
    Dense,
    Int8,
    LayerTensors,
    Linear,
    Look,
    ModelTensors,
    Norm,
    Op,
    RouterTensors,
)

PLACES = [(0, 0), (1, 63), (1, 64), (1, 65), (2, 130), (3, 7), (0, 1), (2, 131), (3, 8)]
ATTENTION, MLP = ("q", "o"), ("gate", "up", "down")


def random(generator: torch.Generator, *shape: int, scale: float = 0.3) -> Tensor:
    return torch.randn(shape, generator=generator) * scale


def router(seed: int, dim: int, kind: str = "dense", **more: Any) -> RouterTensors:
    draw = torch.Generator().manual_seed(seed)
    ops: dict[str, tuple[Op, ...]] = {
        "dense": (Dense(random(draw, 5, dim)), Norm(1 + random(draw, 5), 1e-6), Act("tanh"), Dense(random(draw, 1, 5))),
        "deep": (
            *(Dense(random(draw, 20, dim), random(draw, 20)), Act("silu"), Dense(random(draw, 3, 20), random(draw, 3))),
            *(Act("gelu"), Dense(random(draw, 4, 3)), Act("relu"), Dense(random(draw, 1, 4)), Act("sigmoid")),
        ),
        "look": (Look(200), Dense(torch.tensor([[30.0, -40.0]]), torch.tensor([-0.2]))),
    }  # fmt: skip
    return RouterTensors(ops[kind], **more)


def tokens_of(batch: Any, model: ModelTensors, places: list[tuple[int, int]], seed: int = 5) -> PassTokens:
    """Some of them on the untouched base; every table decided by lot."""
    draw = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0.0, 0.3, -0.3, math.inf])[torch.randint(0, 4, (len(places),), generator=draw)]
    table = torch.randint(0, 2, (len(model.steps), len(places)), generator=draw, dtype=torch.uint8)
    return batch.inputs(places)._replace(offsets=offsets, given=table)


def opened(model: ModelTensors, table: Any) -> tuple[ModelTensors, Callable[[Waiting], Decided], list[Waiting]]:
    """Every step that a table decides is decided in the middle of the pass, by the same table; and where it waited."""

    def wait(branch: Branch | None) -> Any:
        return branch._replace(by="open") if branch is not None and branch.by == "table" else branch

    seen: list[Waiting] = []

    def decide(waiting: Waiting) -> Decided:
        seen.append(Waiting(waiting.step, waiting.here.clone(), waiting.x.clone(), waiting.z.clone()))
        return Decided(table[waiting.step].bool())

    layers = [v._replace(branch=wait(v.branch), mlp_branch=wait(v.mlp_branch)) for v in model.layers]
    return model._replace(layers=tuple(layers)), decide, seen


def check(model: Any, batch: Any, inputs: Any, isa: str | None = None) -> Any:
    """The native pass, against the definition in everything; what it gave, and its counters."""
    native, ours, theirs = NativeModel(model, isa=isa), batch.cache(), batch.cache()
    out = batch.output(len(inputs.ids))
    counters = native.forward(inputs, ours, out)
    expected = definition.forward_pass(model, inputs, theirs)
    assert torch.equal(out.keep, expected.keep)
    torch.testing.assert_close(out.score, expected.score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    count(model, inputs, out.keep.bool(), counters)
    cut, decide, seen = opened(model, inputs.given)
    if any(step.branch.by == "open" for step in cut.steps):
        again, apart = batch.output(len(inputs.ids)), batch.cache()
        summed = NativeModel(cut, isa=isa).forward(inputs, apart, again, decide=decide)
        assert torch.equal(again.logits, out.logits) and torch.equal(again.keep, out.keep)
        assert torch.equal(ours.k, apart.k) and torch.equal(ours.v, apart.v)
        assert summed == counters
    return out, counters, seen


def count(model: Any, inputs: PassTokens, keep: Tensor, counters: Counters) -> None:
    """Every matrix is read where somebody needs it, and nowhere else."""
    free = inputs.offsets != math.inf
    waits = _waiting(model, inputs, keep)
    size = looks = rows = layers = 0
    seen = 0
    for visit, layer in enumerate(model.layers):
        mine = [s for s, step in enumerate(model.steps) if step.visit == visit]
        attends, feeds = keep[mine[0]], keep[mine[-1]]
        ran = attends | feeds
        rows, layers = rows + int(ran.sum()), layers + bool(ran.any())
        needed = ["k", "v"] if layer.absent == "project" or attends.any() else []
        needed += [*ATTENTION] if attends.any() else []
        needed += [*MLP] if feeds.any() else []
        size += sum(getattr(layer, name).weight.numel() for name in needed)
        if layer.adapter is not None and (waits[mine[-1]] & ~feeds & free).any():
            size += sum(part.numel() for part in layer.adapter)
        for s in mine:
            branch, asked = model.steps[s].branch, waits[s] & free
            if branch.router is None or not asked.any():
                continue
            first = branch.router.ops[0]
            looks += int(asked.sum()) if isinstance(first, Look) else 0
            size += first.rows * model.norm.weight.numel() if isinstance(first, Look) else first.weight.numel()
        if layer.absent == "project":
            seen += int((attends * (inputs.positions + 1)).sum()) * layer.kv_heads * layer.head_dim * 2 * 4
    size += model.head.numel() + len(inputs.ids) * model.norm.weight.numel()
    assert counters.weight_bytes == model.norm.weight.element_size() * size
    assert (counters.rows_run, counters.layers_run, counters.looks) == (rows, layers, looks)
    if model.norm.weight.dtype == torch.float32 and all(layer.absent == "project" for layer in model.layers):
        assert counters.kv_bytes == seen


def _waiting(model: Any, inputs: PassTokens, keep: Tensor) -> list[Tensor]:
    """bool [N] for each step: who came to it."""
    begins = [s for s, step in enumerate(model.steps) if step.unit != "mlp"]
    at, waits = torch.zeros(len(inputs.ids), dtype=torch.int64), []
    for s, step in enumerate(model.steps):
        waits.append(at == s)
        for n in waits[-1].nonzero().flatten().tolist():
            target = step.branch.then if keep[s, n] else step.branch.otherwise
            if target is None or inputs.offsets[n] == math.inf:
                at[n] = s + 1
            else:
                at[n] = END if target == END else begins[target]
    return waits


def halves(base: ModelTensors) -> ModelTensors:
    """Attention and MLP apart, alone, soft, by table and by routers."""
    dim = base.norm.weight.shape[0]
    by = {
        1: (Branch("ops", router(1, dim)), Branch("ops", router(2, dim, "deep", cut=0.5))),
        2: (Branch("ops", router(3, dim, soft=True)), Branch()),
        3: (Branch(), Branch("ops", router(4, dim, soft=True))),
        4: (Branch("table"), Branch("table")),
    }
    layers = [
        layer._replace(branch=by[i][0], mlp_branch=by[i][1]) if i in by else layer
        for i, layer in enumerate(base.layers)
    ]
    layers[5] = layers[5]._replace(branch=Branch("ops", router(5, dim, soft=True)), whole=True)
    return base._replace(layers=tuple(layers))


def readout(base: ModelTensors) -> ModelTensors:
    """A token leaves where the head is sure enough of it; its K and V above are projected."""
    leave = [Branch("ops", router(i, 0, "look", cut=cut), otherwise=END) for i, cut in ((2, 0.0), (4, 0.1))]
    layers = list(base.layers)
    layers[2], layers[4] = layers[2]._replace(branch=leave[0]), layers[4]._replace(branch=leave[1])
    return base._replace(layers=tuple(layers))


def exits(base: ModelTensors) -> ModelTensors:
    """A block of its own after three layers, which some tokens end with; what they do not run they leave nothing of."""
    layers = [layer._replace(absent="nothing") for layer in base.layers]
    own = base.layers[5]._replace(branch=Branch("table", then=END), absent="nothing", base=False)
    return base._replace(layers=(*layers[:3], own, *layers[3:]))


def loops(base: ModelTensors) -> ModelTensors:
    """Layers 2 and 3 twice, each time with K and V of their own; a gate lets tokens go around the second time."""
    dim, layers = base.norm.weight.shape[0], list(base.layers)
    gate = Branch("ops", router(9, dim, "deep", cut=0.5), otherwise=6)
    again = layers[2]._replace(branch=gate, base=False), layers[3]._replace(base=False)
    return base._replace(layers=(*layers[:4], *again, *layers[4:]))


PROGRAMS = {"halves": halves, "readout": readout, "exits": exits, "loops": loops}


def wide_model(model: ModelTensors, dtype: torch.dtype) -> ModelTensors:
    """The same weights in another dtype, of routers those of the first operation."""

    def wide(part: Any) -> Any:
        if isinstance(part, Branch) and part.router is not None:
            first = part.router.ops[0]
            first = first._replace(weight=first.weight.to(dtype)) if isinstance(first, Dense) else first
            return part._replace(router=part.router._replace(ops=(first, *part.router.ops[1:])))
        if isinstance(part, Int8):
            return (part.values.float() * part.scale[:, None]).to(dtype)
        if isinstance(part, Tensor):
            return part.to(dtype)
        return type(part)(*map(wide, part)) if isinstance(part, Linear | Norm | AdapterTensors | LayerTensors) else part

    layers = tuple(wide(layer) for layer in model.layers)
    return model._replace(embed=wide(model.embed), layers=layers, norm=wide(model.norm), head=wide(model.head))
