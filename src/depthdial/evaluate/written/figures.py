"""What is counted of answers: each figure is a ratio of sums over texts, so that it can be resampled text by text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from depthdial.evaluate.written.answers import Answer

WINDOW = 4
"""Tokens that stand together where repetition is counted."""
LONG = 64
"""Written tokens from which on a single text is asked whether it met its budget."""


class Sums(NamedTuple):
    """Of one figure: numerators and denominators, float64 [texts] each."""

    values: np.ndarray
    weights: np.ndarray


FIGURES: Mapping[str, str] = {
    "cost": "true cost, written",
    "prompt_cost": "true cost, prompt",
    "nll": "base's NLL a token, nats",
    "repeats": "repeated 4-grams, %",
    "ended": "answers that end, %",
    "length": "length, tokens",
    "chrf": "chrF to the base's answer",
}
"""All figures, with what they are in words. A written token of a loop is likely, too: NLL is read beside repeats."""


def figures(answers: Sequence[Answer], base: Sequence[Answer]) -> dict[str, Sums]:
    """By name, as in FIGURES. base: the untouched base's answers to the same prompts."""
    repeats = [count_repeats(answer.token_ids) for answer in answers]
    return {
        "cost": _sums(answers, lambda a: a.cost, lambda a: a.passes),
        "prompt_cost": _sums(answers, lambda a: a.prompt_cost, lambda a: a.prompt_tokens),
        "nll": _sums(answers, lambda a: -a.logprob, lambda a: len(a.token_ids)),
        "repeats": Sums(*np.array(repeats, float).reshape(-1, 2).T),
        "ended": _sums(answers, lambda a: a.ended),
        "length": _sums(answers, lambda a: len(a.token_ids)),
        "chrf": Sums(
            np.array([chrf(own.text, its.text) for own, its in zip(answers, base, strict=True)]), np.ones(len(answers))
        ),
    }


def count_repeats(token_ids: Sequence[int], window: int = WINDOW) -> tuple[int, int]:
    """How many stretches of `window` tokens stood in the text before, and how many there are."""
    stretches = [tuple(token_ids[i : i + window]) for i in range(len(token_ids) - window + 1)]
    return len(stretches) - len(set(stretches)), len(stretches)


def chrf(text: str, reference: str) -> float:
    """Agreement of two texts in stretches of up to six characters, 0 to 100 (Popović 2015, chrF2); two empty ones
    agree. It is sacrebleu's, which comes with lm-evaluation-harness."""
    if not text.strip() or not reference.strip():
        return 100.0 if text.strip() == reference.strip() else 0.0
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(text, [reference]).score)


def furthest(answers: Sequence[Answer], budgets: Sequence[float]) -> dict[str, Any]:
    """How far the mean cost of a single text of at least `LONG` passes is from its budget: the mean of these distances
    and the largest; null where there is no such text."""
    misses = [abs(a.cost / a.passes - b) for a, b in zip(answers, budgets, strict=True) if a.passes >= LONG]
    mean, most = (sum(misses) / len(misses), max(misses)) if misses else (math.nan, math.nan)
    return {"texts": len(misses), "mean": mean, "most": most}


def _sums(
    answers: Sequence[Answer],
    value: Callable[[Answer], float],
    weight: Callable[[Answer], float] = lambda _: 1.0,
) -> Sums:
    return Sums(np.array([value(a) for a in answers], float), np.array([weight(a) for a in answers], float))
