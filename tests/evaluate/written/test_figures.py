"""Counts by hand."""

from __future__ import annotations

import math

import pytest

from depthdial.evaluate.written.figures import FIGURES, chrf, count_repeats, figures, furthest


def test_repetition_is_counted_in_stretches_of_four():
    assert count_repeats([1, 2, 3, 4, 5, 6]) == (0, 3)
    assert count_repeats([1, 2, 3, 4] * 3) == (5, 9), "nine stretches, four of them different"
    assert count_repeats([7] * 10) == (6, 7)
    assert count_repeats([1, 2, 3]) == (0, 0) == count_repeats([])


def test_chrf():
    text = "The quick brown fox jumps over the lazy dog."
    assert chrf(text, text) == 100 and chrf("", "") == 100 and chrf(" ", "fox") == 0 == chrf("fox", "")
    near, far = chrf("The quick brown fox sleeps.", text), chrf("Nobody knew what came next, alas.", text)
    assert 100 > near > 40 > far > 0
    recall = (2 / 3 + 1 / 2) / 2  # of letters and of pairs; precision is 1, and recall counts twice
    assert chrf("ab", "abc") == pytest.approx(100 * 5 * recall / (4 + recall))


def test_each_figure_is_a_ratio_of_sums(answer):
    base = [answer([1, 2, 3, 4, 5], cost=1.0), answer([1] * 9, cost=1.0, ended=True)]
    own = [answer([1, 2, 3], cost=0.7, logprob=-1.0), answer([5] * 11, cost=0.9, logprob=-0.1, ended=True)]
    result = figures(own, base)
    assert list(result) == list(FIGURES)
    mean = {name: sums.values.sum() / sums.weights.sum() for name, sums in result.items()}
    assert mean["cost"] == pytest.approx((2 * 0.7 + 10 * 0.9) / 12) and mean["prompt_cost"] == 1
    assert mean["nll"] == pytest.approx((3 * 1.0 + 11 * 0.1) / 14)
    assert mean["repeats"] == pytest.approx(7 / 8) and mean["ended"] == 0.5 and mean["length"] == 7
    assert mean["chrf"] < 100 == figures(base, base)["chrf"].values.mean()


def test_only_long_texts_are_asked_whether_they_met_their_budget(answer):
    answers = [answer([1] * 65, cost=0.83), answer([1] * 90, cost=0.79), answer([1] * 64, cost=0.2)]
    result = furthest(answers, [0.8, 0.8, 0.8])
    assert result == {"texts": 2, "mean": pytest.approx(0.02), "most": pytest.approx(0.03)}
    assert math.isnan(furthest(answers[2:], [0.8])["mean"])
