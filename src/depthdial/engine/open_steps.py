"""Steps of a native pass that Python decides in the middle of it: of a method that does not say in operations what it
does there."""

from __future__ import annotations

import torch
from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.method import Seen
from depthdial.core.tokens import Tokens, Trace
from depthdial.engine.model_tensors import Native
from depthdial.engine.ready_parts import ready
from depthdial.engine.runner import TorchRunner
from depthdial.kernels.passing import Decide, Decided, PassOutput, Waiting


class _Past(dict[int, Decision]):
    """Decisions by step; those that the kernels made are looked up when somebody asks for one."""

    def __init__(self, out: PassOutput, row_of: dict[int, int]):
        super().__init__()
        self._out, self._row_of = out, row_of

    def __missing__(self, s: int) -> Decision:
        row = self._row_of[s]
        return Decision.hard(self._out.keep[row].bool(), self._out.score[row])


class OpenSteps:
    """Decides at such steps, and adds what their skipped tokens get instead."""

    def __init__(self, plain: TorchRunner, native: Native):
        self._plain, self._steps = plain, [row[0] for row in native.rows]
        self._row_of = {s: i for i, row in enumerate(native.rows) for s in row}
        self._dtype = native.tensors.norm.weight.dtype
        self._parts = {s: ready(plain.parts[s], self._dtype) for s in native.open}
        lowered = {row[0]: plain.method.lowered(plain.parts[row[-1]], row[-1]) for row in native.rows if len(row) > 1
                   and row[0] in native.open}  # fmt: skip
        self._soft = {s for s, mlp in lowered.items() if mlp is not None and mlp.weights == "soft"}
        """Those whose MLP is decided with them, and weighed by their score."""

    def decider(self, tokens: Tokens, out: PassOutput) -> Decide:
        """Of one pass, to be run without gradients."""
        trace = Trace(self._plain.program, _Past(out, self._row_of))

        def decide(waiting: Waiting) -> Decided:
            s = self._steps[waiting.step]
            decision = self._decision(waiting, s, tokens, trace)
            trace.decisions[s] = decision
            if s in self._plain.bypassed:
                self._bypass(waiting, s, decision)
            if s in self._soft:
                assert decision.score is not None
                return Decided(decision.keep, decision.score, 1 - decision.score)
            return Decided(decision.keep, decision.run, decision.skip)

        return decide

    def _decision(self, waiting: Waiting, s: int, tokens: Tokens, trace: Trace) -> Decision:
        plain, step = self._plain, self._plain.program.steps[s]
        full, some, rows = tokens.full, trace, None  # somebody waits: a token alone is all of them
        base = waiting.here & full
        asked = waiting.here & ~full
        if not asked.any():
            return Decision.hard(base if step.base else torch.zeros_like(base)).within(waiting.here)
        if tokens.count > 1 and not asked.all():
            rows = asked.nonzero()[:, 0]
        if rows is not None:
            tokens, some = tokens[rows], _of(trace, rows)
        z, logits = _taken(waiting.z, rows, self._dtype), None
        if "logits" in step.shows:
            logits = plain.maths.logits(_taken(waiting.x, rows, self._dtype), step.head_rows).float()
        decision = plain.method.decide(self._parts[s], Seen(z, logits), s, tokens, some)
        plain.count_parts(s, "all")
        decision = decision if rows is None else decision.spread(rows, len(waiting.here))
        return decision.running(base) if step.base else decision

    def _bypass(self, waiting: Waiting, s: int, decision: Decision) -> None:
        """Into the stream: attention has been, and the MLP does not run for these tokens."""
        skipped = (waiting.here & ~decision.keep).nonzero()[:, 0]
        if not len(skipped):
            return
        plain = self._plain
        update = plain.method.bypass(self._parts[s], _taken(waiting.z, skipped, self._dtype), s)
        assert update is not None
        plain.count_parts(s, "skipped")
        x = _taken(waiting.x, skipped, self._dtype) + update * decision.skip[skipped, None].to(self._dtype)
        waiting.x[skipped] = x.float()


def _taken(x: Tensor, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (x if rows is None else x[rows]).to(dtype)


def _of(trace: Trace, rows: Tensor) -> Trace:
    """The trace of some tokens, looked up when it is asked for."""
    past = trace.decisions

    class Some(dict[int, Decision]):
        def __missing__(self, s: int) -> Decision:
            return past[s][rows]

    return Trace(trace.program, Some())
