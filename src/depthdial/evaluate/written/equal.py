"""The mean true costs of answers, by which rows are brought to equal cost."""

from __future__ import annotations

from collections.abc import Sequence

from depthdial.evaluate.written.answers import Answer


def cost_of(answers: Sequence[Answer]) -> float:
    """Mean true cost of what was written."""
    return sum(answer.cost for answer in answers) / sum(answer.passes for answer in answers)


def prompt_cost_of(answers: Sequence[Answer]) -> float:
    """Mean true cost of what was read."""
    return sum(answer.prompt_cost for answer in answers) / sum(answer.prompt_tokens for answer in answers)
