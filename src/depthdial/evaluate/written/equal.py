"""Answers whose mean true cost is the one that is to be met: asked for again, with what was missed made up for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from depthdial.evaluate.written.answers import Answer

TOLERANCE, TRIES = 0.005, 3


def meet_cost(
    write: Callable[[float], list[Answer]],
    cost: Callable[[Sequence[Answer]], float],
    target: float,
    lowest: float,
) -> tuple[float, list[Answer]]:
    """The budget and the answers, of up to `TRIES`, whose cost comes nearest to `target`; the first within `TOLERANCE`
    will do. lowest: no budget below it can be asked for."""
    aim, best, nearest = max(target, lowest), None, math.inf
    for _ in range(TRIES):
        answers = write(aim)
        miss = cost(answers) - target
        if abs(miss) < nearest:
            best, nearest = (aim, answers), abs(miss)
        again = min(max(aim - miss, lowest), 1 - 1e-9)
        if nearest <= TOLERANCE or again == aim:
            break
        aim = again
    assert best is not None
    return best


def cost_of(answers: Sequence[Answer]) -> float:
    """Mean true cost of what was written."""
    return sum(answer.cost for answer in answers) / sum(answer.passes for answer in answers)


def prompt_cost_of(answers: Sequence[Answer]) -> float:
    """Mean true cost of what was read."""
    return sum(answer.prompt_cost for answer in answers) / sum(answer.prompt_tokens for answer in answers)
