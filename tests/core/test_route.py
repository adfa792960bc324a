"""A route: what the last pass did, to look at."""

import math

import pytest
import torch

from depthdial.core.cost import LayerWork, Ledger, StepWork
from depthdial.core.decision import Decision
from depthdial.core.program import plain
from depthdial.core.route import Route
from depthdial.core.routed import Pass
from depthdial.core.settings import Settings
from depthdial.core.tokens import Tokens

LAYER = LayerWork(kv=10, attn=20, mlp=70, attend=1, kv_width=1)
PROGRAM = plain(3, (1, 2), ("attn", "mlp"))
LEDGER = Ledger(
    PROGRAM,
    (
        StepWork(LAYER),
        *(StepWork(LAYER.of("attn"), look=8 * (layer == 1), absent=10) if unit == "attn" else StepWork(LAYER.of("mlp"))
          for layer in (1, 2) for unit in ("attn", "mlp")),
    ),
    head=100,
)  # fmt: skip


def hard(*keep: int, score: torch.Tensor | None = None) -> Decision:
    return Decision.hard(torch.tensor(keep, dtype=torch.bool), score)


def tokens(settings: Settings | None = None, real: torch.Tensor | None = None) -> Tokens:
    return (settings or Settings()).tokens(torch.arange(2)[None], None, real, (2, 2), torch.device("cpu"))


def of(tokens: Tokens) -> Route:
    """3 layers, the last two routed, 2 rows of 2 tokens; layer 1 may keep attention and skip its MLP."""
    last = Pass(PROGRAM, tokens)
    last.record(3, hard(0, 1, 0, 0, score=torch.full((4,), 0.25)))
    last.record(4, hard(0, 1, 0, 0))
    last.record(2, hard(0, 1, 0, 1))
    last.record(1, hard(1, 1, 0, 1, score=torch.full((4,), 0.75)))
    return Route(lambda: last, lambda: LEDGER)


def test_layers_used():
    route = of(tokens())
    assert route.shape == (2, 2)
    assert route.keep().tolist() == [
        [[True, True], [True, True]],
        [[True, True], [False, True]],  # attention alone is a layer, too
        [[False, True], [False, False]],
    ]
    assert route.layers_used.tolist() == [[2, 3], [1, 2]]
    assert route.layers_used.dtype == torch.int64


def test_decisions_are_those_of_the_steps_by_row():
    decisions = of(tokens()).decisions
    assert list(decisions) == [1, 2, 3, 4]
    assert decisions[2].keep.tolist() == [[False, True], [False, True]] and decisions[2].score is None


def test_cost_leaves_padding_out():
    work = torch.tensor([[408 - 90 - 70, 408.0], [408 - 2 * 90, 408 - 90]])
    torch.testing.assert_close(of(tokens()).token_cost(), work / 400)
    assert of(tokens()).cost() == pytest.approx(float(work.mean()) / 400)
    real = torch.tensor([[True, True], [False, True]])
    assert of(tokens(real=real)).cost() == pytest.approx((248 + 408 + 318) / 3 / 400)
    with pytest.raises(ValueError, match="no real token"):
        of(tokens(real=torch.zeros(2, 2, dtype=torch.bool))).cost()


def test_what_a_pass_cost_is_told_by_its_own_dial():
    offset = torch.tensor([[math.inf, 0.0], [0.0, 0.0]])
    assert of(tokens(Settings(offset))).token_cost().tolist()[0] == pytest.approx([1.0, 408 / 400])


def test_without_a_pass_there_is_nothing_to_see():
    with pytest.raises(ValueError, match=r"no forward pass .* in this thread") as error:
        Route(lambda: None, lambda: LEDGER).layers_used  # noqa: B018
    assert "\n" not in str(error.value)
    empty = Settings().tokens(torch.zeros(1, 0, dtype=torch.long), None, None, (1, 0), torch.device("cpu"))
    with pytest.raises(ValueError, match="had no tokens"):
        Route(lambda: Pass(PROGRAM, empty), lambda: LEDGER).keep()
