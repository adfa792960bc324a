"""Methods of no paper, for shapes of programs that papers' methods do not all have: a router per token at an exit with
its own block, at a loop, and at a jump to the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.estimators import straight_through
from depthdial.core.layers import Adapter, LinearRouter
from depthdial.core.method import Dims, Method, Parts, Seen
from depthdial.core.program import END, OwnBlock, Program, Step
from depthdial.core.tokens import Tokens, Trace


def chosen(runs: Tensor, opinion: Tensor) -> Decision:
    """With a gradient for the router. runs: bool [N]; opinion: fp32 [N], of running."""
    keep = straight_through(runs, opinion)
    return Decision(runs, keep, 1 - keep, opinion)


class Routers(Method):
    """A linear router at each routed step."""

    lean: ClassVar[float] = 0.0
    """Towards running it."""

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        return {"router": LinearRouter(dims.hidden, classes=1)}

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        logit = tokens.shifted(parts["router"](seen.x) + self.lean)
        return chosen(logit > 0, logit.sigmoid())


@dataclass(frozen=True)
class Exiting(Routers):
    """Before layers 2 and 4 a token may leave by a block of the method's own, seen by those alone that leave by it."""

    def program(self, depth: int) -> Program:
        steps: list[Step] = []
        for layer in range(depth):
            if layer in (2, 4):
                steps.append(Step(-layer // 2, routed="skip", then=END, absent="nothing", base=False))
            steps.append(Step(layer))
        return Program(tuple(steps), (OwnBlock(depth - 1, 2), OwnBlock(1, 4)))

    def decide(self, parts: Parts, seen: Seen, s: int, tokens: Tokens, trace: Trace) -> Decision:
        onward = tokens.shifted(parts["router"](seen.x))
        return chosen(onward <= 0, (-onward).sigmoid())


@dataclass(frozen=True)
class Looping(Routers):
    """Layers 2 and 3 may run once more; the router stands at the loop's start, and who does not loop jumps over it."""

    def program(self, depth: int) -> Program:
        once = [Step(layer) for layer in range(4)]
        again = [Step(2, routed="skip", otherwise=6, base=False), Step(3, base=False)]
        return Program((*once, *again, *(Step(layer) for layer in range(4, depth))))


@dataclass(frozen=True)
class Leaving(Routers):
    """Before each of the upper layers a token may leave for the head, with an adapter's word on the way; layer 4 is
    routed by its halves, and who leaves out its MLP stays."""

    example: ClassVar[Mapping[str, object]] = {"width": 8}
    lean = 1.0  # or few are left for the later routers
    width: int = 8

    def program(self, depth: int) -> Program:
        upper = [Step(layer, routed="skip", otherwise=END) for layer in (2, 3)]
        halves = [Step(4, "attn", absent="nothing"), Step(4, "mlp", "skip")]
        last = [Step(layer, routed="skip", otherwise=END, absent="nothing") for layer in range(5, depth)]
        return Program((Step(0), Step(1), *upper, *halves, *last))

    def parts(self, step: Step, dims: Dims) -> dict[str, nn.Module]:
        return {**super().parts(step, dims), "adapter": Adapter(dims.hidden, self.width)}

    def bypass(self, parts: Parts, x: Tensor, s: int) -> Tensor | None:
        return parts["adapter"](x)


TOYS: dict[str, type[Method]] = {"exiting": Exiting, "looping": Looping, "leaving": Leaving}
