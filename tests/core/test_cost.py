"""What a pass costs, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from depthdial.core.cost import LayerWork, Ledger, StepWork, exact_cost, token_cost
from depthdial.core.decision import Decision
from depthdial.core.program import END, OwnBlock, Program, Step, plain
from depthdial.core.tokens import Tokens, Trace

PLAIN = LayerWork(kv=20, attn=30, mlp=50, attend=8, kv_width=6)
SLIDING = LayerWork(kv=2, attn=3, mlp=5, attend=4, kv_width=2, window=3)
ATTN, MLP = 1, 2
LEDGER = Ledger(
    plain(2, (1,), ("attn", "mlp")),
    (StepWork(SLIDING), StepWork(PLAIN.of("attn"), look=7, absent=20), StepWork(PLAIN.of("mlp"), bypass=4)),
    head=90,
)
"""Dense: 10 + 100 + 90 = 200. A skip of layer 1 leaves out 30 (K and V are still paid for) and 50, and adds 4."""


def of_layers(*layers: LayerWork, head: int = 1) -> Ledger:
    return Ledger(plain(len(layers)), tuple(map(StepWork, layers)), head)


def keep(*tokens: int) -> Decision:
    return Decision.hard(torch.tensor(tokens, dtype=torch.bool))


def tokens(count: int, offset: float | torch.Tensor = 0.0, device: str = "cpu") -> Tokens:
    return Tokens(torch.as_tensor(offset, device=device).expand(count), torch.zeros(count, dtype=torch.long))


def cost(ledger: Ledger, decisions: dict[int, Decision], count: int, offset: float | torch.Tensor = 0.0):
    return token_cost(ledger, tokens(count, offset), Trace(ledger.program, decisions))


def test_prices():
    assert LEDGER.dense == 200
    assert [work.saved for work in LEDGER.steps] == [10, 30, 46] and LEDGER.saved == (0, 76)
    assert LEDGER.layers == (SLIDING, PLAIN)
    bare = replace(LEDGER, steps=tuple(replace(work, absent=0, bypass=0) for work in LEDGER.steps))
    assert [work.saved for work in bare.steps] == [10, 50, 50]


def test_the_untouched_base_pays_for_k_and_v_that_others_ask_it_for():
    again = Program((Step(0), Step(0, routed="skip", base=False), Step(1)))
    works = StepWork(PLAIN), StepWork(PLAIN, look=5, absent=20), StepWork(PLAIN)
    ledger = Ledger(again, works, head=100)
    assert ledger.dense == 300 and ledger.untouched == 320 / 300
    assert cost(ledger, {1: keep(0, 0)}, 2, torch.tensor([0.0, math.inf])).tolist() == pytest.approx(
        [325 / 300, 320 / 300]
    )
    assert LEDGER.untouched == 1.0


def test_floor_skips_what_saves_something():
    assert LEDGER.floor == (200 + 7 - 30 - 46) / 200
    program = plain(1, (0,), ("mlp",))
    attn, mlp = PLAIN.of("attn"), PLAIN.of("mlp")
    dear = Ledger(program, (StepWork(attn), StepWork(mlp, bypass=70)), head=0)  # an adapter larger than its MLP
    assert dear.steps[1].saved == -20 and dear.floor == 1.0


def test_expected_cost_lies_between_floor_and_everything():
    assert LEDGER.expected(1.0) == 207 and LEDGER.expected(0.0) == 207 - 30 - 46
    assert LEDGER.expected(0.25) == 207 - 0.75 * 76
    soft = Ledger(plain(1, (0,), routed="weigh"), (StepWork(PLAIN, look=5),), head=0)
    assert soft.floor == 1.05, "what always runs is never saved"
    assert soft.expected(0.5) == 105 and soft.saved == (0,)


def test_token_cost():
    decision = keep(1, 0, 0, 1)
    both = cost(LEDGER, {ATTN: decision, MLP: decision}, 4)
    torch.testing.assert_close(both, torch.tensor([207, 131, 131, 207]) / 200)
    assert both.dtype == torch.float32
    only_mlp = cost(LEDGER, {ATTN: keep(1, 1), MLP: keep(1, 0)}, 2)
    torch.testing.assert_close(only_mlp, torch.tensor([207, 161]) / 200)
    assert torch.equal(cost(of_layers(SLIDING, PLAIN), {}, 6), torch.ones(6)), "nothing routed, nothing saved"


def test_cost_is_where_the_tokens_are():
    """Also where nothing is decided, as in a dense model."""
    ledger = of_layers(PLAIN)
    assert token_cost(ledger, tokens(3, device="meta"), Trace(ledger.program)).device.type == "meta"


def test_tokens_at_inf_run_the_base():
    decision = keep(1, 1, 1, 0)
    decisions = {ATTN: decision, MLP: decision}
    assert torch.equal(cost(LEDGER, decisions, 4, math.inf), torch.ones(4))
    mixed = cost(LEDGER, decisions, 4, torch.tensor([math.inf, math.inf, 0.0, 0.0]))
    torch.testing.assert_close(mixed, torch.tensor([200, 200, 207, 131]) / 200)


def test_costs_near_one_are_told_apart_on_large_models():
    layer = LayerWork(kv=10**9, attn=10**9, mlp=6 * 10**9, attend=1, kv_width=1)
    program = plain(8, (0,), ("mlp",))
    ledger = Ledger(program, tuple(StepWork(layer.of(step.unit)) for step in program.steps), head=10**9)
    assert float(cost(ledger, {1: keep(0)}, 1)) == pytest.approx(59 / 65, abs=1e-7)


EXIT = Program(
    (Step(0), Step(-1, routed="skip", then=END, otherwise=2, base=False, shows=frozenset({"logits"})), Step(1)),
    (OwnBlock(1, 1),),
)
LEAVING = Ledger(EXIT, (StepWork(PLAIN), StepWork(PLAIN, look=9), StepWork(PLAIN, absent=20)), head=90)
"""Before layer 1, a look at the head's logits, and a block of its own for those who leave."""


def test_an_exit_pays_for_its_block_its_look_and_what_it_leaves_behind():
    assert LEAVING.dense == 290, "the exit's block is not the base's"
    trace = Trace(EXIT, {1: keep(1, 0)}, {1: torch.tensor([True, True]), 2: torch.tensor([False, True])})
    exact = exact_cost(LEAVING, tokens(2), trace) * 290
    assert exact.tolist() == pytest.approx([90 + 100 + 9 + 100 + 20, 90 + 100 + 9 + 100])
    assert LEAVING.floor == (90 + 100 + 9 + 100) / 290, "it goes on: that is cheaper here"


def test_who_has_left_does_not_look():
    program = Program((Step(0, routed="skip", otherwise=END), Step(1, routed="skip", otherwise=END), Step(2)))
    ledger = Ledger(program, (StepWork(PLAIN, look=3),) * 2 + (StepWork(PLAIN),), head=90)
    here = torch.tensor([False, True])
    trace = Trace(program, {0: keep(0, 1), 1: keep(0, 1)}, {0: torch.tensor([True, True]), 1: here, 2: here})
    exact = exact_cost(ledger, tokens(2), trace) * ledger.dense
    assert exact.tolist() == pytest.approx([90 + 3, 90 + 300 + 6])
    assert ledger.floor == 93 / 390, "the cheapest way leaves at once"


def test_a_loop_may_cost_more_than_the_base():
    program = Program((Step(0), Step(1), Step(1, routed="skip", base=False)))
    ledger = Ledger(program, (StepWork(PLAIN),) * 3, head=100)
    assert ledger.dense == 300 and ledger.floor == 1.0
    assert cost(ledger, {2: keep(1, 0)}, 2).tolist() == pytest.approx([4 / 3, 1.0])
