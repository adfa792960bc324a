"""A method asked for single decisions, beside any model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.method import Method, Seen
from depthdial.core.settings import Settings
from depthdial.core.tokens import Tokens, Trace

CPU = torch.device("cpu")


def tokens(rows: int, length: int, ids: Tensor | None = None, real: Tensor | None = None, **settings: Any) -> Tokens:
    """Of rows whose positions start at 0. ids, real: [rows, length]."""
    return Settings(**settings).tokens(torch.arange(length)[None], ids, real, (rows, length), CPU)


def ask(
    method: Method,
    parts: Any,
    x: Tensor,
    step: tuple[int, str] | None = None,
    depth: int = 6,
    trace: Trace | None = None,
    of: Tokens | None = None,
    **settings: Any,
) -> Decision:
    """What it decides for x: [B, T, d], with fields [B, T]; the trace keeps it. step: (layer, unit); None: the first
    routed one of a model of `depth` layers; of: the tokens, else those of `settings`."""
    program = method.program(depth) if trace is None else trace.program
    s = program.routed[0] if step is None else program.step(*step)  # pyright: ignore[reportArgumentType]
    trace = Trace(program) if trace is None else trace
    of = tokens(x.shape[0], x.shape[1], **settings) if of is None else of
    trace.decisions[s] = method.decide(parts, Seen(x.flatten(0, 1)), s, of, trace)
    return trace.decisions[s].shaped(*x.shape[:2])
