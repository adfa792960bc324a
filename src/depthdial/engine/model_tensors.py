"""A converted model as the kernels take it: references to its tensors, and what each step says of itself."""

from __future__ import annotations

from typing import NamedTuple

import torch

from depthdial.core import ops
from depthdial.core.layers import Adapter
from depthdial.core.layers import plain as plain_layer
from depthdial.core.program import END
from depthdial.engine.probe import some_tokens
from depthdial.engine.runner import TorchRunner
from depthdial.kernels import tensors
from depthdial.kernels.tensors import AdapterTensors, Branch, LayerTensors, ModelTensors, RouterTensors


class Native(NamedTuple):
    """A model for the kernels, and which steps of the program their rows of decisions are."""

    tensors: ModelTensors
    rows: tuple[tuple[int, ...], ...]
    """By row: its steps, both halves of a layer that are decided as one."""
    open: tuple[int, ...]
    """Steps that Python decides in the middle of a pass."""


def tensors_of(spine: ModelTensors, plain: TorchRunner) -> Native:
    """The model for the kernels: references to its tensors, and each step as `Method.lowered` says it.

    Raises ValueError for what only torch can do.
    """
    layers: list[LayerTensors] = []
    rows: list[tuple[int, ...]] = []
    open_: list[int] = []
    lowering = _Lowering(spine, plain)
    for v, (visit, block) in enumerate(zip(plain.program.visits, spine.layers, strict=True)):
        first, last = visit.steps[0], visit.steps[-1]
        together = first == last or lowering.as_one(first, last)
        branch, mlp_branch = lowering.branch(first, last if together else first), None
        rows.append(visit.steps if together else (first,))
        if not together:
            mlp_branch = lowering.branch(last, last)
            rows.append((last,))
        pairs = ((first, branch),) if mlp_branch is None else ((first, branch), (last, mlp_branch))
        open_ += [s for s, each in pairs if each.by == "open"]
        absent = "nothing" if v in plain.program.sparse else "project"
        adapter, base = lowering.adapter(visit.steps), plain.program.steps[first].base
        of = {"branch": branch, "mlp_branch": mlp_branch, "adapter": adapter, "absent": absent, "base": base}
        of["whole"] = plain.program.steps[first].unit == "layer"
        layers.append(block._replace(**of))
    return Native(spine._replace(layers=tuple(layers)), tuple(rows), tuple(open_))


class _Lowering:
    """What the steps of a method say of themselves, in the kernels' words."""

    def __init__(self, spine: ModelTensors, plain: TorchRunner):
        self.plain, self.program, self.dtype = plain, plain.program, spine.norm.weight.dtype
        self.lowered = {s: plain.method.lowered(parts, s) for s, parts in plain.parts.items()}
        tokens = some_tokens(spine.norm.weight.device)
        self.kept_as_one = plain.method.ahead and plain.method.keeps(plain.program, tokens) is not None

    def as_one(self, attn: int, mlp: int) -> bool:
        """Are the halves of a layer decided together, or neither?"""
        if attn not in self.lowered or mlp not in self.lowered:
            return attn not in self.lowered and mlp not in self.lowered
        lowered = self.lowered[mlp]
        return self.kept_as_one or (lowered is not None and lowered.like == attn)

    def branch(self, s: int, last: int) -> Branch:
        """Of a step. last: the step whose weights it has, where two are decided as one."""
        step, lowered = self.program.steps[s], self.lowered.get(s)
        then, otherwise = self._visit(self.program.steps[last].then), self._visit(step.otherwise)
        if s not in self.lowered:
            return Branch("no", None, then, otherwise)
        weights = self.lowered[last]
        soft = weights is not None and weights.weights == "soft"
        if self.plain.method.ahead:
            return Branch("table", None, then, otherwise)
        if lowered is None or lowered.ops is None:
            return Branch("open", None, then, otherwise)
        each = tuple(self._op(op, i == 0, step.head_rows) for i, op in enumerate(lowered.ops))
        router = RouterTensors(each, lowered.cut, soft)
        return Branch("ops", router, then, otherwise)

    def adapter(self, steps: tuple[int, ...]) -> AdapterTensors | None:
        """What tokens get that skip a visit, by the input of its MLP; at an open step Python gives it."""
        found = None
        for s in (s for s in steps if s in self.lowered):
            lowered, unit = self.lowered[s], self.program.steps[s].unit
            bypassed = s in self.plain.bypassed
            if bypassed and unit != "mlp":
                raise ValueError("the kernels replace the MLP of a layer, not its attention or the layer as a whole")
            if bypassed and lowered is not None:
                if lowered.bypass is None or not all(map(plain_layer, lowered.bypass.children())):
                    raise ValueError("its adapters hold a LoRA or another foreign layer; merge it (merge_and_unload)")
                found = self._adapter(lowered.bypass)
        return found

    def _visit(self, s: int | None) -> int | None:
        return s if s is None else tensors.END if s == END else self.program.visit_of[s]

    def _op(self, op: ops.Op, first: bool, head_rows: int | None) -> tensors.Op:
        match op:
            case ops.Dense(weight, bias, wide):
                weight = weight.to(self.dtype) if first and not wide else weight.float()
                return tensors.Dense(weight, None if bias is None else bias.float())
            case ops.Norm(weight, eps):
                return tensors.Norm(weight.float(), eps)
            case ops.Act(name):
                return tensors.Act(name)
            case ops.Look():
                return tensors.Look(head_rows)
        raise AssertionError(op)

    @torch.no_grad()
    def _adapter(self, adapter: Adapter) -> AdapterTensors:
        parts = adapter.gate, adapter.up, adapter.down
        return AdapterTensors(*(part.weight.detach().to(self.dtype) for part in parts))
