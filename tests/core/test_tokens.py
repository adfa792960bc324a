"""Tokens and their settings, and the trace: what is known before a pass, and what came of it."""

from __future__ import annotations

import math

import pytest
import torch

from depthdial.core.decision import Decision
from depthdial.core.program import Program, Step, plain
from depthdial.core.settings import Settings
from depthdial.core.tokens import Tokens, Trace

CPU = torch.device("cpu")


def tokens_of(settings: Settings, rows: int = 2, length: int = 2) -> Tokens:
    return settings.tokens(torch.arange(length)[None], None, None, (rows, length), CPU)


def offsets(rows: int = 2, length: int = 2, **settings) -> list:
    return tokens_of(Settings(**settings), rows, length).offset.view(rows, length).tolist()


def hard(*keep: int, score: torch.Tensor | None = None) -> Decision:
    return Decision.hard(torch.tensor(keep, dtype=torch.bool), score)


def test_hard_decisions_have_weights_of_zero_and_one():
    decision = hard(1, 0)
    assert decision.run.tolist() == [1.0, 0.0] and decision.skip.tolist() == [0.0, 1.0] and decision.score is None


def test_who_does_not_wait_at_a_step_does_nothing_there():
    decision = hard(1, 0, 1, 0).within(torch.tensor([True, True, False, False]))
    assert decision.keep.tolist() == [True, False, False, False]
    assert decision.run.tolist() == [1, 0, 0, 0] and decision.skip.tolist() == [0, 1, 0, 0]


def test_the_dial_moves_logits_of_all_rows_or_of_each():
    logit = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.bfloat16)
    moved = tokens_of(Settings(0.5)).shifted(logit)
    assert moved.tolist() == [1.5, 2.5, 3.5, 4.5] and moved.dtype == torch.float32
    tokens = tokens_of(Settings(torch.tensor([-1.0, math.inf])))
    assert tokens.shifted(logit).tolist() == [0.0, 1.0, math.inf, math.inf]
    assert tokens.full.tolist() == [False, False, True, True]
    assert offsets(4, 1, offset=torch.tensor([1.0, 2.0])) == [[1], [1], [2], [2]], "beams stand side by side"


def test_dense_only_where_no_token_asks_for_a_decision():
    assert [Settings(o).dense for o in (0.0, 1e9, math.inf, torch.full((2,), math.inf))] == [False, False, True, False]
    read = torch.tensor([[True, False], [False, False]])
    assert [Settings(math.inf, read, o).dense for o in (None, -0.5, math.inf)] == [True, False, True]


def test_tokens_that_are_read_have_a_dial_of_their_own():
    read = torch.tensor([[True, False], [False, False]])
    assert offsets(offset=-1.0, read=read) == [[-1, -1], [-1, -1]], "no other dial: the form of the papers"
    assert offsets(offset=-1.0, read=read, read_offset=math.inf) == [[math.inf, -1], [-1, -1]]
    each = torch.tensor([-1.0, 0.5])
    assert offsets(offset=each, read=read, read_offset=math.inf) == [[math.inf, -1], [0.5, 0.5]]
    every = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert offsets(offset=every, read=read, read_offset=-0.5) == [[-0.5, 1], [2, 3]]


@pytest.mark.parametrize(
    ("name", "shape"), [("offset", (2, 3)), ("offset", (2, 1)), ("offset", (3, 2)), ("read", (2,)), ("read", (1, 2))]
)
def test_dials_of_other_tokens_are_refused(name: str, shape: tuple[int, ...]):
    values = torch.zeros(shape, dtype=torch.bool if name == "read" else torch.float32)
    with pytest.raises(ValueError, match=r"has shape .* the batch 2 rows of 2 tokens") as caught:
        tokens_of(Settings(**{name: values, "read_offset": math.inf}))
    assert "\n" not in str(caught.value)


def test_where_what_is_written_begins():
    read = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]]).bool()
    tokens = tokens_of(Settings(read=read), 2, 4)
    assert tokens.answer.tolist() == [-1, -1, 0, 1, 0, -1, 0, -1]
    later = Settings(prompt=torch.tensor([3, 1])).tokens(torch.tensor([[5]]), None, None, (2, 1), CPU)
    assert later.answer.tolist() == [2, 4]
    assert tokens_of(Settings()).answer.tolist() == [0, 1, 0, 1], "all is written"


def test_some_tokens_keep_what_is_theirs():
    ids = torch.tensor([[7, 8], [9, 10]])
    tokens = Settings(torch.tensor([1.0, 2.0]), training=True).tokens(torch.arange(2)[None], ids, None, (2, 2), CPU)
    some = tokens[torch.tensor([1, 2])]
    assert (some.id is not None and some.id.tolist() == [8, 9]) and some.offset.tolist() == [1, 2]
    assert some.training and some.count == 2
    assert tokens.rows(tokens.position).tolist() == [[0, 1], [0, 1]]
    with pytest.raises(ValueError, match="compares the tokens of whole rows"):
        some.rows(some.position)


@pytest.fixture
def trace() -> Trace:
    """3 layers, the last two routed at attention and MLP; 4 tokens; layer 1 may keep attention and skip its MLP."""
    trace = Trace(plain(3, (1, 2), ("attn", "mlp")))
    trace.decisions[1] = hard(1, 1, 0, 1, score=torch.full((4,), 0.75))
    trace.decisions[2] = hard(0, 1, 0, 1)
    trace.decisions[3] = hard(0, 1, 0, 0, score=torch.full((4,), 0.25))
    trace.decisions[4] = hard(0, 1, 0, 0)
    return trace


def test_keep_counts_a_layer_of_which_any_unit_ran(trace: Trace):
    like = torch.zeros(4)
    assert trace.keep(like).int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 0]]
    assert trace.keep(like, "mlp").int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [0, 1, 0, 0]]


UNITS = {
    ("attn",): ([1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]),  # MLPs always run
    ("mlp",): ([1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0]),
    ("attn", "mlp"): ([1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0]),
    ("layer",): ([0, 0, 1, 0],) * 3,
}


@pytest.mark.parametrize("units", UNITS)
def test_a_unit_without_decisions_always_runs(units: tuple[str, ...]):
    program = plain(2, (1,), units)
    keep = {"attn": hard(0, 1, 1, 0), "mlp": hard(1, 0, 1, 0), "layer": hard(0, 0, 1, 0)}
    trace = Trace(program, {s: keep[program.steps[s].unit] for s in program.routed})
    for unit, expected in zip((None, "attn", "mlp"), UNITS[units], strict=True):
        ran = trace.keep(torch.zeros(4), unit)
        assert ran[0].all() and ran[1].int().tolist() == expected


def test_stack_follows_the_steps(trace: Trace):
    assert trace.stack("score", "attn").tolist() == [[0.75] * 4, [0.25] * 4]
    assert trace.stack("keep", "mlp").shape == (2, 4) and trace.stack("keep").shape == (4, 4)
    with pytest.raises(ValueError, match="'layer'"):
        trace.stack("keep", "layer")


def test_density_is_in_the_order_of_the_steps(trace: Trace):
    shares = {s: torch.tensor(s / 10) for s in (4, 3, 2, 1)}
    tokens = Tokens(torch.zeros(4), torch.arange(4), density=shares)
    density = trace.density(tokens, "attn")
    assert density is not None and density.tolist() == pytest.approx([0.1, 0.3])
    assert trace.density(Tokens(torch.zeros(4), torch.arange(4)), "attn") is None


def test_who_jumps_past_a_step_did_not_run_it():
    program = Program((Step(0), Step(1, routed="skip", otherwise=3), Step(2), Step(3)))
    here = torch.tensor([True, False])
    trace = Trace(program, {1: hard(1, 0)}, {2: here})
    assert trace.ran(2) is here and trace.ran(3) is None
    assert trace.keep(torch.zeros(2)).int().tolist() == [[1, 1], [1, 0], [1, 0], [1, 1]]
    some = trace[torch.tensor([1])]
    assert some.keep(torch.zeros(1)).int().tolist() == [[1], [0], [0], [1]]
