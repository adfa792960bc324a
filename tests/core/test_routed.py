"""The reference executor on toy units: base + run * (F(x) - base) + skip * bypass(x)."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from depthdial.core.decision import Decision
from depthdial.core.method import Method
from depthdial.core.program import END, Program, Step, plain
from depthdial.core.routed import Pass, Routed
from depthdial.core.settings import Settings

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
KEEP = torch.tensor([[True, False, True], [False, False, True]])


@dataclass(frozen=True)
class Fixed(Method):
    """Keeps KEEP with given weights; skipped tokens get `gift` times their input."""

    run: float = 1.0
    skip: float = 1.0
    gift: float | None = None

    def program(self, depth):
        return plain(depth, range(depth))

    def decide(self, parts, seen, s, tokens, trace):
        return Decision(KEEP.view(-1), self.run * KEEP.view(-1), self.skip * ~KEEP.view(-1))

    def bypass(self, parts, x, s):
        return None if self.gift is None else self.gift * x


class Unit(nn.Module):
    """Ten times its input; notes what it was given."""

    def forward(self, hidden_states, scale=10.0, **others):
        self.others = others
        return hidden_states * scale


class Pair(nn.Module):
    def forward(self, x):
        return x * 10, "weights", None


def a_pass(program: Program, offset: float | torch.Tensor = 0.0) -> Pass:
    return Pass(program, Settings(offset).tokens(torch.arange(3)[None], None, None, (2, 3), torch.device("cpu")))


def routed(
    method: Method, unit: nn.Module | None = None, kind: str = "attn", offset: float = 0.0, norm: Any = None
) -> tuple[Routed, Pass]:
    program = plain(1, (0,), ("layer",) if kind == "layer" else ("attn", "mlp"))
    running = a_pass(program, offset)
    return Routed(unit or Unit(), method, program, program.step(0, kind), {}, lambda: running, norm), running  # pyright: ignore


@pytest.mark.parametrize(("kind", "base"), [("attn", 0.0), ("mlp", 0.0), ("layer", 1.0)])
@pytest.mark.parametrize("gift", [None, 3.0])
def test_the_formula(kind: str, base: float, gift: float | None):
    out = routed(Fixed(0.5, 0.25, gift), kind=kind)[0].unit(X)
    kept = base * X + 0.5 * (10 * X - base * X)
    passed = base * X + 0.25 * (gift or 0.0) * X
    torch.testing.assert_close(out, torch.where(KEEP[..., None], kept, passed))


@pytest.mark.parametrize("kind", ["attn", "layer"])
def test_exact_at_zero_and_one(kind: str):
    out = routed(Fixed(), kind=kind)[0].unit(X)
    assert torch.equal(out[KEEP], (X * 10)[KEEP])
    assert torch.equal(out[~KEEP], X[~KEEP] if kind == "layer" else torch.zeros_like(X[~KEEP]))


def test_arguments_pass_through():
    unit, _ = routed(Fixed())
    out = unit.unit(hidden_states=X, scale=2.0, past_key_values="cache")
    assert torch.equal(out[KEEP], (X * 2)[KEEP])
    assert unit.unit.others == {"past_key_values": "cache"}


def test_a_tuple_keeps_its_tail():
    out, *tail = routed(Fixed(), Pair())[0].unit(X)
    assert torch.equal(out[KEEP], (X * 10)[KEEP]) and not out[~KEEP].any()
    assert tail == ["weights", None]


def test_the_untouched_base_makes_no_decision():
    class Never(Fixed):
        def decide(self, parts, seen, s, tokens, trace):
            raise AssertionError("asked at offset inf")

    unit, running = routed(Never(), Pair(), offset=math.inf)
    out, *tail = unit.unit(X)
    assert torch.equal(out, X * 10) and tail == ["weights", None]
    (decision,) = running.trace.decisions.values()
    assert decision.keep.all() and decision.run.all() and not decision.skip.any()


def test_a_whole_layer_decides_on_its_own_norm():
    class Layer(Unit):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)

    shown = []

    class Sign(Fixed):
        def decide(self, parts, seen, s, tokens, trace):
            shown.append(seen.x)
            return super().decide(parts, seen, s, tokens, trace)

        def bypass(self, parts, x, s):
            return x

    layer = Layer()
    unit, _ = routed(Sign(), layer, "layer", norm=layer.norm)
    out = unit.unit(X)
    z = layer.norm(X)
    assert torch.equal(shown[0].view_as(X), z)
    torch.testing.assert_close(out, torch.where(KEEP[..., None], X * 10, X + z))


def test_the_decision_stands_before_the_unit_runs():
    class Asking(nn.Module):
        def forward(self, x):
            assert torch.equal(running.trace.decisions[0].keep.view_as(KEEP), KEEP)
            return x

    unit, running = routed(Fixed(), Asking())
    unit.unit(X)


def test_a_second_run_replaces_the_decision():
    unit, running = routed(Fixed())
    unit.unit(X)
    unit.unit(X)
    assert list(running.trace.decisions) == [0]


def test_bf16_stays_bf16():
    assert routed(Fixed(0.5, 0.25, 3.0))[0].unit(X.bfloat16()).dtype == torch.bfloat16


LEAVING = Program((Step(0, routed="skip", otherwise=END), Step(1), Step(2, routed="skip", base=False), Step(3)))


def test_who_has_left_stays_as_it_is():
    """KEEP goes on from step 0; at step 2 a token on the untouched base does nothing, not even its bypass."""
    offset = torch.zeros(2, 3)
    offset[0, 2] = math.inf
    running = a_pass(LEAVING, offset)

    class Once(Fixed):
        def decide(self, parts, seen, s, tokens, trace):
            return super().decide(parts, seen, s, tokens, trace) if s == 0 else Decision.hard(torch.ones(6).bool())

    units = [Routed(Unit(), Once(gift=0.0), LEAVING, s, {}, lambda: running) for s in range(4)]
    x = X
    for unit in units:
        x = unit.unit(x)
    torch.testing.assert_close(x[~KEEP], X[~KEEP], rtol=0, atol=0)
    torch.testing.assert_close(x[1, 2], X[1, 2] * 10**4)
    torch.testing.assert_close(x[0, 2], X[0, 2] * 10**3)
    trace, kept = running.trace, KEEP.view(-1)
    assert torch.equal(trace.here[1], kept) and torch.equal(trace.here[3], kept)
    assert trace.ran(1) is trace.here[1] and trace.decisions[2].keep.tolist() == [True, *[False] * 4, True]
    assert (running.at == END).all()


def test_an_untouched_pass_leaves_what_the_base_has_not():
    running = a_pass(LEAVING, math.inf)
    units = [Routed(Unit(), Fixed(gift=3.0), LEAVING, s, {}, lambda: running) for s in range(4)]
    x = X
    for unit in units:
        if unit.step.base:
            x = unit.unit(x)
        else:
            assert torch.equal(unit.unit(x), x)
    assert torch.equal(x, X * 10 * 10 * 10)
    assert not running.trace.decisions[2].keep.any() and (running.at == END).all()
    again = a_pass(LEAVING, math.inf)
    unit = Routed(Unit(), Fixed(gift=3.0), LEAVING, 2, {}, lambda: again)
    again.at = torch.full((6,), 2)
    unit.leave()
    assert not again.trace.decisions[2].keep.any() and (again.at == 3).all()
