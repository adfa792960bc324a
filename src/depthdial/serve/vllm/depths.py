"""How deep each token ran, out of vLLM's workers: a log in the model, and an extension of the worker that hands it out.

The seam is vLLM's own: `LLM(..., worker_extension_cls=EXTENSION)` and `collective_rpc`. Nothing is rows until asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from torch import Tensor

from depthdial.core.tokens import Trace

EXTENSION = "depthdial.serve.vllm.depths.DepthExtension"


class PassDepths(TypedDict):
    """What one pass did with the tokens of one request."""

    request: str
    """vLLM's own name of it: the request's id, and after a dash eight characters."""
    positions: list[int]
    ran: list[list[bool]]
    """For each of these tokens, which layers ran."""


@dataclass
class DepthLog:
    """Decisions pass by pass. One per model; tensors are read at the end of a pass."""

    requests: Callable[[], Sequence[str]] | None = None
    """Names of the requests of the current pass, in its order; None: nothing is kept."""
    passes: list[PassDepths] = field(default_factory=list)

    def record(self, positions: Tensor, of: Tensor, trace: Trace) -> None:
        """A pass has ended. positions: int64 [T]; of: int64 [T], which request each token belongs to."""
        if self.requests is None:
            return
        ran, positions, of = trace.keep(positions).T.cpu(), positions.cpu(), of.cpu()
        for index, name in enumerate(self.requests()):
            mine = of == index
            if mine.any():
                self.passes.append(PassDepths(request=name, positions=positions[mine].tolist(), ran=ran[mine].tolist()))


class DepthExtension:
    """Methods that vLLM adds to its worker; each is called on all ranks by `collective_rpc(name)`."""

    model_runner: Any

    def depthdial_record(self, on: bool = True) -> None:
        """Begin to keep decisions, or stop and forget."""
        log = self._depthdial_log()
        runner = self.model_runner
        log.requests = (lambda: runner.input_batch.req_ids) if on else None
        log.passes.clear()

    def depthdial_decisions(self) -> list[PassDepths]:
        """What was kept since the last call."""
        log = self._depthdial_log()
        passes, log.passes = log.passes, []
        return passes

    def _depthdial_log(self) -> DepthLog:
        log = vars(self.model_runner.get_model()).get("log")
        if not isinstance(log, DepthLog):
            raise ValueError("this model was not exported by depthdial; depth is known of those only")
        return log


def layers_used(passes: Sequence[PassDepths], request: str) -> dict[int, int]:
    """How many layers each token of a request ran, by its place in the text; tokens whose K and V came out of the
    prefix cache are not there. A token that ran again (after preemption) counts as it ran last.

    request: its id as vLLM's outputs say it.
    """
    depths: dict[int, int] = {}
    for one in passes:
        if one["request"] == request or one["request"].rpartition("-")[0] == request:
            depths |= {place: sum(ran) for place, ran in zip(one["positions"], one["ran"], strict=True)}
    return depths


def histogram(passes: Sequence[PassDepths]) -> Counter[int]:
    """How many tokens ran how many layers."""
    return Counter(sum(ran) for one in passes for ran in one["ran"])
