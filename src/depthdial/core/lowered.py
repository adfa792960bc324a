"""A step's decision as a list of operations that executors can fuse into one native call.

A method may describe with it what its `decide` and `bypass` say; the law that the two agree is in tests/laws. This file
is *not* how an executor evaluates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from depthdial.core.layers import Adapter, LinearRouter, Router
from depthdial.core.ops import Op


@dataclass(frozen=True)
class Lowered:
    """A token runs the step where the last operation's one number + offset > cut.

    Skipped: y = x + w_skip * bypass(u), u the unit's own normed input. Kept: y = x + w_run * unit(x).
    """

    ops: tuple[Op, ...] | None
    """All but the first in fp32. None: the method knows without looking, before the pass (`Method.ahead`)."""
    cut: float = 0.0
    """log(tau / (1 - tau)): 0 for tau = 0.5."""
    weights: Literal["hard", "soft"] = "hard"
    """"hard": w_run = w_skip = 1. "soft": w_run = g, w_skip = 1 - g, with g = sigmoid(number + offset)."""
    bypass: Adapter | None = None
    """None: nothing is added for a skipped token."""
    like: int | None = None
    """Decided with that earlier step, the attention of its block: `ops` and `cut` are not read."""


def lowered_router(parts: Mapping[str, nn.Module] | nn.ModuleDict, cut: float = 0.0) -> Lowered:
    """A hard decision by the part "router". ValueError where it holds a layer that is not torch's own."""
    router = parts["router"]
    assert isinstance(router, Router | LinearRouter)
    return Lowered(router.ops, cut)


def adapter_in(parts: Mapping[str, nn.Module] | nn.ModuleDict) -> Adapter | None:
    """The part "adapter"; None where there is none."""
    adapter = parts["adapter"] if "adapter" in parts else None  # noqa: SIM401 (a ModuleDict has no `get`)
    assert adapter is None or isinstance(adapter, Adapter)
    return adapter
