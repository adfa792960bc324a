"""The dense, differentiable reference: the meaning of every method.

It runs every step for every token and weighs the result, so it is never the fast way. The engine must equal it and must
not compute what was skipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from depthdial.core.decision import Decision
from depthdial.core.method import Method, Seen
from depthdial.core.program import Program
from depthdial.core.tokens import Tokens, Trace


class Pass:
    """One forward pass under way: its tokens, its trace, and the step that each token waits for."""

    def __init__(self, program: Program, tokens: Tokens, untouched: bool | None = None):
        """untouched: does the whole pass run the untouched base, where that is known without a look at the tokens?"""
        self.tokens, self.trace = tokens, Trace(program)
        self.at = torch.full_like(tokens.position, program.first) if program.jumps else None
        """int64 [N]; None where every token goes through every step."""
        self.untouched = bool(tokens.full.all()) if untouched is None else untouched
        self.opened: dict[int, Any] = {}
        """Steps between their unit's input and output."""
        self.inputs: dict[str, dict[str, Any]] = {}
        """What the last layer of each kind (full or sliding attention) was called with beside its hidden states."""
        self._learns, self._blind = torch.is_grad_enabled(), False

    def here(self, s: int) -> Tensor | None:
        """bool [N]: the tokens that wait at a step; None: all."""
        if self.at is None or s < self.trace.program.first:
            return None
        if s not in self.trace.here:  # a checkpoint comes here twice
            self.trace.here[s] = self.at == s
        return self.trace.here[s]

    def record(self, s: int, decision: Decision) -> None:
        """Keep what was decided at a step. Warns where a reentrant checkpoint hides decisions from a loss on them."""
        self.trace.decisions[s] = decision
        if self._learns and not torch.is_grad_enabled() and not self._blind:
            self._blind = True
            warnings.warn(
                "gradient checkpointing with use_reentrant=True: a loss on decisions gives routers no gradient; pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}",
                stacklevel=2,
            )

    def move(self, s: int, ran: Tensor | None) -> None:
        """Let the tokens that wait at a step go on. ran: bool [N]; None: all of them ran it."""
        if self.at is not None and s >= self.trace.program.first:
            program, here = self.trace.program, self.trace.here[s]
            onward = torch.full_like(self.at, program.after(s, True))
            if ran is not None:
                onward = torch.where(ran, onward, program.after(s, False))
            self.at = torch.where(here, onward, self.at)


class Routed:
    """Hooks on one unit of an unmodified Hugging Face layer, or on the layer, that apply a step's decision to it.

    The unit stays where it is, so every weight of the base keeps its name; the step's parts become the unit's
    submodule `parts`. `lerp` is exact at 0 and at 1, so keep-all is the base bit for bit. The decision is made and
    stored before the unit runs; of a tuple that it gives the tail is kept.
    passing: the pass under way in this thread. norm: what norms the unit's input for the method, where that comes as it
    is (a whole layer's): methods decide on normed inputs. outlet: the module whose output is the unit's
    update, where a norm follows the unit; None: the unit. readout: the logits of states [N, d] -> [N, rows].
    """

    def __init__(
        self,
        unit: nn.Module,
        method: Method,
        program: Program,
        s: int,
        parts: dict[str, nn.Module],
        passing: Callable[[], Pass],
        norm: Callable[[Tensor], Tensor] | None = None,
        outlet: nn.Module | None = None,
        readout: Callable[[Tensor, int | None], Tensor] | None = None,
    ):
        self.unit, self.method, self.s, self.step, self.norm = unit, method, s, program.steps[s], norm
        self._passing, self._readout = passing, readout
        self._parted = self.s in program.parted
        if self._parted:
            unit.add_module("parts", nn.ModuleDict(parts))
        self.mix = mixed
        """To be replaced by a compiled one."""
        self._hooks = [
            unit.register_forward_pre_hook(self._decide, with_kwargs=True),
            (unit if outlet is None else outlet).register_forward_hook(self._weigh),
        ]
        changed = method.delta(self.parts, s) if self.step.relaxed else {}
        for name, module in unit.named_modules():
            if (last := name.rpartition(".")[2]) in changed and not name.startswith("parts."):
                self._hooks.append(module.register_forward_hook(Changing(self, last)))

    @property
    def parts(self) -> nn.ModuleDict:
        if not self._parted:
            return nn.ModuleDict()
        parts = self.unit.get_submodule("parts")
        assert isinstance(parts, nn.ModuleDict)
        return parts

    def remove(self) -> None:
        """Leave the unit as it was, without parts."""
        for hook in self._hooks:
            hook.remove()
        if self._parted:
            del self.unit.parts

    def leave(self) -> None:
        """What an untouched pass does at a step that the base does not have: nothing, which is noted."""
        running = self._passing()
        if self.step.routed != "no":
            running.record(self.s, self._untouched(running))
        running.here(self.s)
        running.move(self.s, torch.zeros_like(running.tokens.full))

    def _decide(self, _unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, running, s = args[0] if args else kwargs["hidden_states"], self._passing(), self.s
        here = running.here(s)
        as_it_is = running.untouched and self.step.base
        if self.step.routed == "no":
            if here is not None and not as_it_is:
                running.opened[s] = _Open(x, x, None, here)
            running.move(s, None)
            return
        z = x if self.norm is None or running.untouched else self.norm(x)
        decision = self._untouched(running) if running.untouched else self._decision(x, z, running)
        if here is not None:
            decision = decision.within(here)
        if not as_it_is:
            running.opened[s] = _Open(x, z, decision, here)
        running.record(s, decision)
        running.move(s, decision.keep)

    def _untouched(self, running: Pass) -> Decision:
        """Where all tokens run the base: this step, or neither it nor its bypass."""
        every = torch.ones_like(running.tokens.full)
        return Decision.hard(every) if self.step.base else Decision.hard(every).within(~every)

    def _decision(self, x: Tensor, z: Tensor, running: Pass) -> Decision:
        """x: [B, T, d], the unit's input; z: the same, normed."""
        logits = None
        if "logits" in self.step.shows:
            assert self._readout is not None
            logits = self._readout(x.flatten(0, 1), self.step.head_rows)
        seen = Seen(z.flatten(0, 1), logits)
        decision = self.method.decide(self.parts, seen, self.s, running.tokens, running.trace)
        return decision if self.step.base else decision.within(~running.tokens.full)

    def _weigh(self, _outlet: nn.Module, _args: tuple[Any, ...], out: Any) -> Any:
        opened = self._passing().opened.pop(self.s, None)
        if opened is None:
            return None  # all tokens run it as it is
        x, z, decision, here = opened
        update, tail = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
        base = x if self.step.unit == "layer" else torch.zeros_like(x)  # attn and mlp: the residual is outside
        if decision is None:
            assert here is not None
            update = torch.where(here.view(x.shape[:2])[..., None], update, base)
        else:
            decision = decision.shaped(*x.shape[:2])
            update = self.mix(base, update, decision.run)
            bypass = self.method.bypass(self.parts, z.flatten(0, 1), self.s)
            if bypass is not None:
                update = update + decision.skip[..., None].to(x.dtype) * bypass.view_as(x)
        return update if tail is None else (update, *tail)


class Changing:
    """A hook after a linear map that adds the low-rank change of a step."""

    def __init__(self, routed: Routed, name: str):
        self.routed, self.name = routed, name

    def __call__(self, _linear: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        """args: (x [..., in],); out: [..., out]."""
        return out + self.routed.method.delta(self.routed.parts, self.routed.s)[self.name](args[0])


class _Open(NamedTuple):
    """A step between its unit's input and output."""

    x: Tensor
    z: Tensor
    decision: Decision | None
    """None: the step is not routed."""
    here: Tensor | None


def mixed(base: Tensor, update: Tensor, run: Tensor) -> Tensor:
    """(1 - run) base + run update, exact at 0 and 1. base, update: [B, T, d]; run: [B, T]. In base's dtype: autocast
    narrows updates."""
    return torch.lerp(base, update.to(base.dtype), run[..., None].to(base.dtype))
