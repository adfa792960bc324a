"""The budget control on gates made up here: it converges, resumes, and only sums count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from depthdial.core.decision import Decision
from depthdial.core.program import END, Program, Step, plain
from depthdial.core.settings import Settings
from depthdial.core.tokens import Tokens, Trace
from depthdial.train.budget import NODES, BudgetControl

FLOOR, LAYERS, TOKENS = 0.6, 4, 64


@dataclass
class Gates:
    """Routers whose logits are noise of their own around a mean; a token's cost follows the share of gates it opens.

    `benefit` is what the task's loss gains per open gate: the price must become equal to it.
    """

    mean: float = 1.0
    width: float = 0.7
    benefit: float = 0.0

    def logits(self, keys: Tensor) -> Tensor:
        """[LAYERS, B, TOKENS]; a row's noise follows from its key alone."""
        rows = [torch.randn(LAYERS, TOKENS, generator=torch.Generator().manual_seed(int(key))) for key in keys]
        return self.mean + self.width * torch.stack(rows, 1)

    def cost(self, keys: Tensor, offset: Tensor) -> Tensor:
        """[B]"""
        keep = self.logits(keys) + offset[:, None] > 0
        return FLOOR + (1 - FLOOR) * keep.float().mean((0, 2))

    def work_through(self, control: BudgetControl, keys: Tensor, items: int, progress: float = 1.0) -> Tensor:
        """One micro-batch: forward, charge, backward."""
        budget = control.draw(keys, progress)
        offset = control.offset(budget)
        tokens, trace = tokens_at(offset), Trace(plain(LAYERS, range(LAYERS), ("attn", "mlp")))
        logits = self.logits(keys).requires_grad_()
        for layer in range(LAYERS):
            score = tokens.shifted(logits[layer].flatten()).sigmoid()
            trace.decisions[2 * layer] = trace.decisions[2 * layer + 1] = Decision.hard(score > 0.5, score)
        weight = torch.ones(len(keys), TOKENS)
        price = control.charge(tokens, trace, budget, self.cost(keys, offset), weight)
        task = -self.benefit * trace.stack("score", "attn").sum()
        ((task + price) / items).backward()
        assert logits.grad is not None
        return logits.grad


def tokens_at(offset: Tensor) -> Tokens:
    """Of rows of TOKENS tokens. offset: fp32 [B]."""
    shape = (len(offset), TOKENS)
    return Settings(offset).tokens(torch.arange(TOKENS)[None], None, None, shape, torch.device("cpu"))


def keys_of(step: int, rows: int = 8) -> Tensor:
    return torch.arange(rows) * 7919 + step * 104729 + 1


def train(control: BudgetControl, gates: Gates, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        gates.work_through(control, keys_of(step), items=8 * TOKENS)
        control.step(8 * TOKENS)


def state(control: BudgetControl) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in control.state_dict().items()}


@pytest.mark.parametrize(
    ("gates", "start"),
    [(Gates(), 0.0), (Gates(mean=-2.0), 0.0), (Gates(mean=2.0, width=2.0), 0.0), (Gates(width=0.1), 1.0)],
    ids=str,
)
def test_every_budget_is_met(gates: Gates, start: float):
    control = BudgetControl(0.7, 0.95, FLOOR, start, spread=0.2)  # wrong about the start, the spread, or both
    train(control, gates, 150)
    fresh = keys_of(10**6, rows=24)
    for budget in (0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        rows = torch.full((24,), budget)
        assert float(gates.cost(fresh, control.offset(rows)).mean()) == pytest.approx(budget, abs=0.015)
    assert (control.offsets.diff() >= 0).all()


def test_the_right_start_is_right_at_once():
    gates = Gates(mean=1.5, width=0.5)
    control = BudgetControl(0.7, 0.95, FLOOR, start=1.5, spread=0.5)
    fresh = keys_of(5, rows=24)
    for budget in (0.7, 0.8, 0.9, 0.95):
        rows = torch.full((24,), budget)
        assert float(gates.cost(fresh, control.offset(rows)).mean()) == pytest.approx(budget, abs=0.01)


@pytest.mark.parametrize("benefit", [0.5, -0.2, 0.03])
def test_the_price_becomes_the_benefit_at_the_margin(benefit: float):
    gates = Gates(benefit=benefit)
    control = BudgetControl(0.7, 0.95, FLOOR, start=1.0, spread=0.7)
    train(control, gates, 80)
    assert float(control.price) == pytest.approx(benefit, rel=0.01)
    grad = gates.work_through(control, keys_of(999), items=8 * TOKENS)
    assert abs(float(grad.sum())) < 0.02 * abs(benefit), "the mean logit has no drift left"


def test_the_state_resumes_exactly():
    gates = Gates(benefit=0.3)
    whole, part = (BudgetControl(0.7, 0.95, FLOOR) for _ in range(2))
    train(whole, gates, 12)
    train(part, gates, 5)
    copy = state(part)
    resumed = BudgetControl(0.7, 0.95, FLOOR, start=3.0, spread=9.0)  # what it begins with is overwritten
    resumed.load_state_dict(copy)
    train(resumed, gates, 7, first=5)
    assert all(torch.equal(tensor, state(resumed)[name]) for name, tensor in state(whole).items())
    assert not list(whole.parameters()), "nothing for an optimizer to move"


def test_small_batches_sum_to_a_large_one():
    gates = Gates(benefit=0.3)
    large, small = (BudgetControl(0.7, 0.95, FLOOR) for _ in range(2))
    for step in range(4):
        keys, items = keys_of(step), 8 * TOKENS
        whole = gates.work_through(large, keys, items)
        parts = [gates.work_through(small, key[None], items) for key in keys]
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        before = state(large)
        for name, tensor in before.items():
            torch.testing.assert_close(state(small)[name], tensor, rtol=1e-4, atol=1e-5)
        large.step(items)
        small.step(items)
        assert not torch.equal(large.offsets, before["offsets"]) and not large._moment.any()
    torch.testing.assert_close(small.offsets, large.offsets, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.price, large.price, rtol=1e-4, atol=1e-6)


def test_rows_without_gradient_do_no_harm():
    """A row whose targets are all ignored has a gradient of exactly zero."""
    control, gates = BudgetControl(0.7, 0.95, FLOOR), Gates(benefit=0.0)
    assert float(control.price) == 0
    grad = gates.work_through(control, keys_of(0), items=TOKENS)
    assert grad.shape == (LAYERS, 8, TOKENS) and not grad.any()
    control.step(TOKENS)
    assert float(control.price) == 0 and control.offsets.isfinite().all()


def test_methods_without_routers_keep_their_offsets():
    control = BudgetControl(0.7, 0.95, FLOOR, offsets=lambda grid: 10 * grid)
    before = state(control)
    trace = Trace(plain(1, (0,)), {0: Decision.hard(torch.ones(3 * TOKENS, dtype=torch.bool))})
    weight = torch.ones(3, TOKENS)
    charge = control.charge(tokens_at(torch.zeros(3)), trace, torch.full((3,), 0.8), torch.full((3,), 0.9), weight)
    assert float(charge) == 0 and not charge.requires_grad
    control.step(15)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(control).items())
    torch.testing.assert_close(control.offset(torch.tensor([0.7, 0.8, 0.95])), torch.tensor([7.0, 8.0, 9.5]))


def test_offsets_are_linear_between_nodes_and_flat_outside():
    control = BudgetControl(0.7, 0.9, FLOOR, offsets=lambda grid: (grid * 10).square())
    grid = control.grid
    torch.testing.assert_close(control.offset(grid), (grid * 10).square())
    middle = (grid[2:3] + grid[3:4]) / 2
    torch.testing.assert_close(control.offset(middle), (control.offsets[2:3] + control.offsets[3:4]) / 2)
    torch.testing.assert_close(control.offset(torch.tensor([0.1, 1.0])), control.offsets[[0, NODES - 1]])


def test_budgets_belong_to_their_rows_and_the_range_opens_downwards():
    control = BudgetControl(0.65, 0.95, FLOOR)
    keys = torch.randint(0, 2**31 - 1, (500,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    late = control.draw(keys, 1.0)
    assert torch.equal(control.draw(keys[order], 1.0), late[order])
    assert torch.equal(control.draw(keys[:1], 1.0), late[:1])
    assert late.dtype == torch.float32 and 0.65 <= float(late.min()) < 0.66 and 0.94 < float(late.max()) <= 0.95
    assert float(late.mean()) == pytest.approx(0.8, abs=0.015)
    lowest = [float(control.draw(keys, progress).min()) for progress in (0.0, 0.1, 0.2, 0.4, 0.8)]
    assert lowest == sorted(lowest, reverse=True) and lowest[0] > 0.91 and lowest[3] == lowest[4]


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.9), (0.5, 0.9), (0.9, 0.7), (0.7, 1.1), (math.nan, 0.9)])
def test_budgets_that_cannot_be_trained_are_refused(low: float, high: float):
    with pytest.raises(ValueError, match="cannot be trained") as caught:
        BudgetControl(low, high, FLOOR)
    assert "\n" not in str(caught.value)


def test_one_budget_alone_can_be_held():
    gates, control = Gates(), BudgetControl(0.8, 0.8, FLOOR)
    train(control, gates, 120)
    rows = torch.full((24,), 0.8)
    assert float(gates.cost(keys_of(77, 24), control.offset(rows)).mean()) == pytest.approx(0.8, abs=0.015)


def test_who_has_left_is_not_charged_for_routers_that_it_does_not_meet():
    """Before the second router half of the tokens have left; what stands there as their score counts for nothing."""
    control, here = BudgetControl(0.7, 0.95, FLOOR), torch.arange(TOKENS) % 2 == 0
    control.price += 0.5
    program = Program((Step(0, routed="skip", otherwise=END), Step(1, routed="skip", otherwise=END), Step(2)))
    scores = torch.full((2, TOKENS), 0.25, requires_grad=True)
    trace = Trace(program, {s: Decision.hard(scores[s] > 0.5, scores[s]) for s in (0, 1)}, {1: here})
    ones = torch.ones(1)
    charge = control.charge(tokens_at(torch.zeros(1)), trace, 0.8 * ones, 0.8 * ones, torch.ones(1, TOKENS))
    assert float(charge) == pytest.approx(0.5 * 0.25 * (TOKENS + TOKENS / 2))
    charge.backward()
    assert scores.grad is not None and scores.grad[0].all() and torch.equal(scores.grad[1] != 0, here)
    assert float(control._moment[0]) == 1.5 * TOKENS
