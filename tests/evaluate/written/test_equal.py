"""A cost that is to be met is met, as far as a dial reaches."""

from __future__ import annotations

import pytest

from depthdial.evaluate.equal_cost import TOLERANCE, TRIES, meet_cost
from depthdial.evaluate.written.equal import cost_of, prompt_cost_of


def test_what_was_missed_is_made_up_for(answer):
    asked = []

    def write(aim):
        asked.append(aim)
        return [answer([1] * 9, cost=0.9 * aim)]

    aim, answers = meet_cost(write, cost_of, 0.8, 0.5)
    assert abs(cost_of(answers) - 0.8) <= TOLERANCE and asked[0] == 0.8 < asked[-1] == aim and len(asked) == 3
    assert prompt_cost_of(answers) == 1


def test_what_is_near_enough_is_not_written_again(answer):
    asked = []
    aim, _ = meet_cost(lambda aim: asked.append(aim) or [answer([1] * 9, cost=0.8 + TOLERANCE / 2)], cost_of, 0.8, 0.5)
    assert asked == [0.8] and aim == 0.8


def test_the_nearest_is_kept_where_the_dial_does_not_reach(answer):
    asked = []

    def write(aim):
        asked.append(aim)
        return [answer([1] * 9, cost=0.95 if len(asked) == 2 else 0.97)]

    aim, answers = meet_cost(write, cost_of, 0.8, 0.75)
    assert aim == asked[1] == 0.75 and cost_of(answers) == pytest.approx(0.95) and len(asked) <= TRIES
