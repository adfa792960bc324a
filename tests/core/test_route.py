"""A route: what it remembers of a pass, and what follows from it."""

import math

import pytest
import torch

from depthdial.core.cost import LayerWork, Ledger
from depthdial.core.decision import Decision, Site
from depthdial.core.route import Route

LAYER = LayerWork(kv=10, attn=20, mlp=70, attend=1, kv_width=1)


def hard(*rows: list[int], score: torch.Tensor | None = None) -> Decision:
    return Decision.hard(torch.tensor(rows, dtype=torch.bool), score)


@pytest.fixture
def route() -> Route:
    """3 layers, the last two routed, 2 rows of 2 tokens; layer 1 may keep attention and skip its MLP."""
    route = Route(Ledger((LAYER,) * 3, head=100, always={Site(1, "attn"): 8}))
    route.begin((2, 2), None)
    route.decisions[Site(2, "attn")] = hard([0, 1], [0, 0], score=torch.full((2, 2), 0.25))
    route.decisions[Site(2, "mlp")] = hard([0, 1], [0, 0])
    route.decisions[Site(1, "mlp")] = hard([0, 1], [0, 1])
    route.decisions[Site(1, "attn")] = hard([1, 1], [0, 1], score=torch.full((2, 2), 0.75))
    return route


def test_hard_decisions_have_weights_of_zero_and_one():
    decision = hard([1, 0])
    assert decision.run.tolist() == [[1.0, 0.0]]
    assert decision.skip.tolist() == [[0.0, 1.0]]
    assert decision.score is None


def test_layers_used(route: Route):
    assert route.keep().tolist() == [
        [[True, True], [True, True]],
        [[True, True], [False, True]],  # attention alone is a layer, too
        [[False, True], [False, False]],
    ]
    assert route.layers_used.tolist() == [[2, 3], [1, 2]]
    assert route.layers_used.dtype == torch.int64


def test_cost_leaves_padding_out(route: Route):
    work = torch.tensor([[408 - 90 - 70, 408.0], [408 - 2 * 90, 408 - 90]])
    torch.testing.assert_close(route.token_cost(), work / 400)
    assert route.cost() == pytest.approx(float(work.mean()) / 400)
    route.mask = torch.tensor([[True, True], [False, True]])
    assert route.cost() == pytest.approx((248 + 408 + 318) / 3 / 400)


def test_stack_follows_the_layers(route: Route):
    assert route.stack("score", "attn").flatten(1).tolist() == [[0.75] * 4, [0.25] * 4]
    assert route.stack("keep", "mlp").shape == (2, 2, 2)
    with pytest.raises(ValueError, match="'layer'"):
        route.stack("keep", "layer")


def test_begin_forgets(route: Route):
    route.positions = torch.zeros(1, 2)
    route.begin((1, 3), torch.ones(1, 3).bool())
    assert not route.decisions and route.positions is None and route.shape == (1, 3)
    assert route.layers_used.tolist() == [[3, 3, 3]]
    assert route.cost() == 1.0


def test_the_dial_moves_logits_of_all_rows_or_of_each(route: Route):
    logit = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    route.offset = 0.5
    assert route.shifted(logit).tolist() == [[1.5, 2.5], [3.5, 4.5]]
    assert route.shifted(logit).dtype == torch.float32
    route.offset = torch.tensor([-1.0, math.inf])
    assert route.shifted(logit).tolist() == [[0.0, 1.0], [math.inf, math.inf]]


def test_dense_only_when_no_row_asks_for_a_decision(route: Route):
    states = []
    for offset in (0.0, 1e9, math.inf, torch.full((2,), math.inf)):
        route.offset = offset
        states.append(route.dense)
    assert states == [False, False, True, False]


UNITS = {
    ("attn",): ([[1, 1], [1, 1]], [[0, 1], [1, 0]], [[1, 1], [1, 1]]),  # MLPs always run
    ("mlp",): ([[1, 1], [1, 1]], [[1, 1], [1, 1]], [[1, 0], [1, 0]]),
    ("attn", "mlp"): ([[1, 1], [1, 0]], [[0, 1], [1, 0]], [[1, 0], [1, 0]]),
    ("layer",): ([[0, 0], [1, 0]],) * 3,
}


@pytest.mark.parametrize("units", UNITS)
def test_a_layer_counts_when_any_unit_ran_and_a_unit_without_decisions_always_does(units: tuple[str, ...]):
    made = {"attn": hard([0, 1], [1, 0]), "mlp": hard([1, 0], [1, 0]), "layer": hard([0, 0], [1, 0])}
    route = Route(Ledger((LAYER,) * 2, head=100))
    route.begin((2, 2), None)
    for unit in units:
        route.decisions[Site(1, unit)] = made[unit]
    for unit, expected in zip((None, "attn", "mlp"), UNITS[units], strict=True):
        keep = route.keep(unit)
        assert keep[0].all() and keep[1].int().tolist() == expected
    assert torch.equal(route.layers_used, route.keep().sum(0))


def test_tokens_that_are_read_have_a_dial_of_their_own(route: Route):
    route.offset, route.read = -1.0, torch.tensor([[True, False], [False, False]])
    logit = torch.zeros(2, 2)
    assert route.shifted(logit).tolist() == [[-1, -1], [-1, -1]], "no other dial: the form of the papers"
    route.read_offset = math.inf
    assert route.shifted(logit).tolist() == [[math.inf, -1], [-1, -1]]
    route.offset = torch.tensor([-1.0, 0.5])
    assert route.shifted(logit).tolist() == [[math.inf, -1], [0.5, 0.5]]
    route.offset, route.read_offset = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), -0.5
    assert route.shifted(logit).tolist() == [[-0.5, 1], [2, 3]]
    assert not route.dense
    route.offset = math.inf
    assert not route.dense
    route.read_offset = math.inf
    assert route.dense


def test_what_a_pass_cost_is_told_by_its_own_dial(route: Route):
    decisions = dict(route.decisions)
    route.offset = torch.tensor([[math.inf, 0.0], [0.0, 0.0]])
    route.begin((2, 2), None)
    route.decisions.update(decisions)
    route.offset = 0.0
    assert route.token_cost().tolist()[0] == pytest.approx([1.0, 408 / 400])


@pytest.mark.parametrize(
    ("name", "shape"), [("offset", (2, 3)), ("offset", (2, 1)), ("offset", (3, 2)), ("read", (2,)), ("read", (1, 2))]
)
def test_dials_of_other_tokens_are_refused(route: Route, name: str, shape: tuple[int, ...]):
    route.read_offset = math.inf
    setattr(route, name, torch.zeros(shape, dtype=torch.bool if name == "read" else torch.float32))
    with pytest.raises(ValueError, match=rf"route.{name} has shape .* the batch 2 rows of 2 tokens") as caught:
        route.shifted(torch.zeros(2, 2))
    assert "\n" not in str(caught.value)
