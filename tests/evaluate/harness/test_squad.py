"""SQuAD's exact match and F1, by cases worked out by hand."""

from __future__ import annotations

import pytest

from depthdial.evaluate.harness.squad import compute_exact, compute_f1, normalize_answer


def test_normalized():
    assert normalize_answer("  The  Quick, brown-fox! ") == "quick brownfox"
    assert normalize_answer("an A the") == ""


@pytest.mark.parametrize(
    ("gold", "answer", "exact", "f1"),
    [
        ("the fox", "Fox.", 1, 1.0),
        ("white fox", "a fox", 0, 2 / 3),
        ("red red fox", "red fox fox", 0, 2 / 3),
        ("fox", "dog", 0, 0.0),
        ("", "", 1, 1.0),
        ("the", "fox", 0, 0.0),
    ],
)
def test_scores(gold, answer, exact, f1):
    assert compute_exact(gold, answer) == exact
    assert compute_f1(gold, answer) == pytest.approx(f1)
