"""The reference executor on toy units: base + run * (F(x) - base) + skip * bypass(x)."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from depthdial.core.cost import LayerWork, Ledger
from depthdial.core.decision import Decision, Site
from depthdial.core.method import Method
from depthdial.core.route import Route
from depthdial.core.routed import Routed

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
KEEP = torch.tensor([[True, False, True], [False, False, True]])


@dataclass(frozen=True)
class Fixed(Method):
    """Keeps KEEP with given weights; skipped tokens get `gift` times their input."""

    run: float = 1.0
    skip: float = 1.0
    gift: float | None = None

    def decide(self, parts, x, site, route):
        return Decision(KEEP, self.run * KEEP, self.skip * ~KEEP)

    def bypass(self, parts, x, site):
        return None if self.gift is None else self.gift * x


class Unit(nn.Module):
    """Ten times its input; notes what it was given."""

    def forward(self, hidden_states, scale=10.0, position_ids=None, **others):
        self.others = others
        return hidden_states * scale


class Pair(nn.Module):
    def forward(self, x):
        return x * 10, "weights", None


def routed(method: Method, unit: nn.Module | None = None, kind: str = "attn") -> Routed:
    layer = LayerWork(1, 1, 1, 1, 1)
    return Routed(unit or Unit(), method, Site(0, kind), {}, Route(Ledger((layer,), head=1)))


@pytest.mark.parametrize(("kind", "base"), [("attn", 0.0), ("mlp", 0.0), ("layer", 1.0)])
@pytest.mark.parametrize("gift", [None, 3.0])
def test_the_formula(kind: str, base: float, gift: float | None):
    out = routed(Fixed(0.5, 0.25, gift), kind=kind).unit(X)
    kept = base * X + 0.5 * (10 * X - base * X)
    passed = base * X + 0.25 * (gift or 0.0) * X
    torch.testing.assert_close(out, torch.where(KEEP[..., None], kept, passed))


@pytest.mark.parametrize("kind", ["attn", "layer"])
def test_exact_at_zero_and_one(kind: str):
    out = routed(Fixed(), kind=kind).unit(X)
    assert torch.equal(out[KEEP], (X * 10)[KEEP])
    assert torch.equal(out[~KEEP], X[~KEEP] if kind == "layer" else torch.zeros_like(X[~KEEP]))


def test_arguments_pass_through_and_positions_reach_the_route():
    unit = routed(Fixed())
    positions = torch.arange(3)[None]
    out = unit.unit(hidden_states=X, scale=2.0, position_ids=positions, past_key_values="cache")
    assert torch.equal(out[KEEP], (X * 2)[KEEP])
    assert unit.unit.others == {"past_key_values": "cache"}
    assert unit.route.positions is positions


def test_a_tuple_keeps_its_tail():
    out, *tail = routed(Fixed(), Pair()).unit(X)
    assert torch.equal(out[KEEP], (X * 10)[KEEP]) and not out[~KEEP].any()
    assert tail == ["weights", None]


def test_the_untouched_base_makes_no_decision():
    class Never(Fixed):
        def decide(self, parts, x, site, route):
            raise AssertionError("asked at offset inf")

    unit = routed(Never(), Pair())
    unit.route.offset = math.inf
    out, *tail = unit.unit(X)
    assert torch.equal(out, X * 10) and tail == ["weights", None]
    (decision,) = unit.route.decisions.values()
    assert decision.keep.all() and decision.run.all() and not decision.skip.any()


def test_a_whole_layer_decides_on_its_own_norm():
    class Layer(Unit):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)

    seen = []

    class Sign(Fixed):
        def decide(self, parts, x, site, route):
            seen.append(x)
            return super().decide(parts, x, site, route)

        def bypass(self, parts, x, site):
            return x

    layer = LayerWork(1, 1, 1, 1, 1)
    unit = Routed(Layer(), Sign(), Site(0, "layer"), {}, Route(Ledger((layer,), head=1)), "norm")
    out = unit.unit(X)
    z = unit.unit.get_submodule("norm")(X)
    assert torch.equal(seen[0], z)
    torch.testing.assert_close(out, torch.where(KEEP[..., None], X * 10, X + z))


def test_the_decision_stands_before_the_unit_runs():
    class Asking(nn.Module):
        def forward(self, x):
            assert torch.equal(route.decisions[Site(0, "attn")].keep, KEEP)
            return x

    unit = routed(Fixed(), Asking())
    route = unit.route
    unit.unit(X)


def test_a_second_run_replaces_the_decision():
    unit = routed(Fixed())
    unit.unit(X)
    unit.unit(X)
    assert list(unit.route.decisions) == [Site(0, "attn")]


def test_bf16_stays_bf16():
    assert routed(Fixed(0.5, 0.25, 3.0)).unit(X.bfloat16()).dtype == torch.bfloat16
