"""A method reads what it names: tried at conversion, on tokens that refuse everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from depthdial.core.method import Dims, Method, Seen
from depthdial.core.program import Program
from depthdial.core.tokens import Tokens, Trace

FIELDS = ("position", "id", "key", "prompt")
"""Of `Tokens`, as `Method.reads` names them."""
KNOWN = frozenset({"x", "logits", *FIELDS})


class _Unnamed:
    """Stands for what a method does not name."""

    def __init__(self, name: str, said: str):
        self._name, self._said = name, said

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ValueError(f"{self._said} reads {self._name!r}, and its `reads` does not name it")

    def __getattr__(self, _name: str) -> Any:
        return self._refuse()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse
    __getitem__ = __len__ = __iter__ = __bool__ = __invert__ = __and__ = __mod__ = __floordiv__ = _refuse

    @classmethod
    def __torch_function__(cls, _func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in (*args, *(kwargs or {}).values()):
            if isinstance(each, _Unnamed):
                each._refuse()
        raise AssertionError


def check_reads(
    method: Method, program: Program, parts: Mapping[int, Mapping[str, nn.Module]], dims: Dims, vocabulary: int
) -> None:
    """Raise ValueError, in one line that names the step, where a decision reads what `Method.reads` does not name."""
    if unknown := method.reads - KNOWN:
        raise ValueError(f"{type(method).__name__}.reads names {', '.join(sorted(unknown))}; known: "
                         f"{', '.join(sorted(KNOWN))}")  # fmt: skip
    for s in program.routed:
        step = program.steps[s]
        said = f"step {s} ({step.unit} of block {step.block}) of {type(method).__name__}"
        device = next((w.device for part in parts[s].values() for w in part.parameters()), torch.device("cpu"))
        if device.type == "meta":
            continue
        if "logits" in method.reads and "logits" not in step.shows:
            raise ValueError(f"{said} reads logits, and the step does not show them")
        count = 2
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        fields: dict[str, Any] = {name: zeros if name in method.reads else _Unnamed(name, said) for name in FIELDS}
        rows = vocabulary if step.head_rows is None else min(vocabulary, step.head_rows)
        seen: Any = Seen(
            torch.ones(count, dims.hidden, device=device) if "x" in method.reads else _Unnamed("x", said),  # pyright: ignore[reportArgumentType]
            torch.zeros(count, rows, device=device) if "logits" in method.reads else _Unnamed("logits", said),  # pyright: ignore[reportArgumentType]
        )
        tokens = Tokens(offset=torch.zeros(count, device=device), **fields, shape=(1, count))
        trace = Trace(program)
        with torch.no_grad():
            visit = program.visits[program.visit_of[s]]
            for earlier in (e for e in visit.steps if e < s and e in parts):
                trace.decisions[earlier] = method.decide(parts[earlier], seen, earlier, tokens, trace)
            method.decide(parts[s], seen, s, tokens, trace)
