"""Programs: what they say of visits, jumps and routed steps, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from depthdial.core.program import END, OwnBlock, Program, Step, plain

EXIT = Program(
    (Step(0), Step(1), Step(-1, routed="skip", otherwise=3, then=END, base=False), Step(2), Step(3)),
    (OwnBlock(3, 2),),
)
"""Before layer 2, an exit's own block: who runs it leaves, who does not goes on."""
LOOP = Program((Step(0), Step(1), Step(1, routed="skip", base=False), Step(2, "attn", "skip"), Step(2, "mlp")))


def test_a_plain_program_has_the_layers_in_order_and_routes_the_units_named():
    program = plain(4, (2, 1), ("attn", "mlp"), absent="nothing")
    assert [(s.block, s.unit) for s in program.steps] == [
        (0, "layer"), (1, "attn"), (1, "mlp"), (2, "attn"), (2, "mlp"), (3, "layer")
    ]  # fmt: skip
    assert program.routed == (1, 2, 3, 4) and program.skips and program.plain and not program.jumps and program.gaps
    assert [visit.steps for visit in program.visits] == [(0,), (1, 2), (3, 4), (5,)]
    assert program.visit_of == (0, 1, 1, 2, 2, 3)
    assert [plain(3, (1,), units).routed for units in (("layer",), ("attn",), ("mlp",))] == [(1,), (1,), (2,)]
    assert not plain(3, (1,), routed="weigh").skips and plain(3).routed == ()
    with pytest.raises(ValueError, match=r"routed layers \[3, 4\] do not fit a model of 4 layers"):
        plain(4, (4, 3))


def test_a_step_is_found_by_layer_and_unit():
    assert LOOP.step(1) == 1 and LOOP.step(2, "mlp") == 4
    with pytest.raises(ValueError, match="no step of this program is mlp 1"):
        LOOP.step(1, "mlp")


def test_where_tokens_go():
    assert [EXIT.after(2, ran) for ran in (True, False)] == [END, 3]
    assert EXIT.after(1, True) == 2 and EXIT.after(4, True) == END
    assert EXIT.jumps and not LOOP.jumps and not EXIT.plain and not LOOP.plain
    assert [visit.block for visit in EXIT.visits] == [0, 1, -1, 2, 3]


def test_programs_that_can_be_run_are_let_through():
    EXIT.check(4)
    LOOP.check(3)
    plain(6, range(6), ("attn", "mlp")).check(6)


WRONG = {
    "jumps back": (Step(0), Step(1, routed="skip", otherwise=0)),
    "there is no such block": (Step(0), Step(7)),
    "then is 9, and the last step is 1": (Step(0, then=9), Step(1)),
    "the middle of a block": (Step(0, then=2), Step(1, "attn"), Step(1, "mlp")),
    "nothing decides": (Step(0, otherwise=END), Step(1)),
    "says how many logits it shows": (Step(0, routed="skip", head_rows=5),),
    "only the decision of a whole layer": (Step(0, "attn", "skip", shows=frozenset({"logits"})), Step(0, "mlp")),
    "cannot show smell": (Step(0, routed="skip", shows=frozenset({"smell"})),),
    "come one after the other": (Step(0, "attn"), Step(1, "mlp")),
    "ends with a whole block": (Step(0), Step(1, "attn")),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_no_executor_can_run_is_refused_in_one_line(words: str):
    with pytest.raises(ValueError, match=words) as error:
        Program(WRONG[words]).check(2)
    assert "\n" not in str(error.value)


def test_an_own_block_begins_as_a_layer_that_is_there():
    with pytest.raises(ValueError, match="copies layer 5 at layer 0; the base has 4"):
        Program((Step(0), Step(-1, base=False)), (OwnBlock(5, 0),)).check(4)


def test_the_base_has_a_way_of_its_own():
    assert EXIT.base_way == (0, 1, 2, 3, 4) and LOOP.base_way == (0, 1, 2, 3, 4)
    beside = Program(
        (Step(0, routed="skip", otherwise=2, then=3), Step(1), Step(-1, base=False), Step(1)), (OwnBlock(0, 1),)
    )
    with pytest.raises(ValueError, match=r"step 1 .* `base` is True, and the untouched base never comes here"):
        beside.check(2)
    with pytest.raises(ValueError, match=r"step 1 .* `base` is False, and the untouched base comes here"):
        Program((Step(0), Step(0, base=False))).check(1)


def test_the_first_step_that_is_no_plain_layer():
    assert (EXIT.first, LOOP.first, plain(4).first, plain(4, (2,), ("mlp",)).first) == (2, 2, 4, 3)


def test_branches_are_exits_by_blocks_of_the_methods_own():
    assert EXIT.branches == (2,) and LOOP.branches == plain(4, [1]).branches == plain(4).branches == ()
    stays = replace(EXIT, steps=tuple(replace(step, then=None) for step in EXIT.steps))
    assert stays.branches == (), "who comes back to the base changes it"
    more = replace(EXIT, steps=tuple(replace(s, routed="skip") if s.block == 3 else s for s in EXIT.steps))
    assert more.branches == (), "a layer of the base is decided, too"
