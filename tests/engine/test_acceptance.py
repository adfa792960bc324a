"""How often drafts were right, and what passes take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.engine.acceptance import FORGOTTEN, SLOPE, Prices, Rates


@given(st.lists(st.booleans(), max_size=60), st.floats(0.0, 1.0))
def test_rates_lie_between_the_prior_and_what_was_seen(seen: list[bool], prior: float):
    rates = Rates(lambda _: prior)
    for right in seen:
        rates.note("kind", right)
    assert min([prior, *seen]) - 1e-9 <= rates.rate("kind") <= max([prior, *seen]) + 1e-9
    assert rates.rate("another") == pytest.approx(prior)


def test_recent_outcomes_count_most():
    rates = Rates(lambda _: 0.5, memory=8)
    for right in [True] * 50 + [False] * 12:
        rates.note("kind", right)
    assert rates.rate("kind") < 0.35
    assert Rates(lambda _: 0.5, memory=8).rate("kind") == 0.5


def test_what_a_row_learns_is_the_prior_of_the_next():
    engine = Rates(lambda _: 0.5, memory=128)
    row = Rates(engine.rate, engine)
    for _ in range(40):
        row.note("kind", True)
    assert Rates(engine.rate, engine).rate("kind") > 0.9


def test_prices_are_the_fastest_of_the_recent_samples_without_the_first():
    prices = Prices()
    assert prices.base(1) == 1 and prices.base(5) == pytest.approx(1 + 4 * SLOPE) and prices.draft(1, 0.6) == 0.6
    for seconds in (0.1, 9.0, 2.0, 3.0):
        prices.note("base", 1, seconds)
    assert prices.base(1) == 2.0 and prices.base(3) == pytest.approx(2 * (1 + 2 * SLOPE))
    assert prices.draft(1, 0.5) == 1.0, "by its cost, until one is measured"
    for _ in range(2):
        prices.note("draft", 1, 1.5)
    assert prices.draft(1, 0.5) == 1.5
    for _ in range(20):
        prices.note("base", 1, 4.0)
    assert prices.base(1) == 4.0


def test_fewer_tokens_never_take_longer():
    prices = Prices()
    for tokens, seconds in ((4, 9.0), (8, 3.0)) * 2:
        prices.note("base", tokens, seconds)
    assert [prices.base(4), prices.base(8)] == pytest.approx([3.0, 3.0])


def test_what_was_not_measured_for_long_is_guessed_again():
    prices = Prices()
    for _ in range(2):
        prices.note("base", 2, 50.0)
    for _ in range(FORGOTTEN + 64):
        prices.note("base", 1, 1.0)
    assert prices.base(2) == pytest.approx(1 + SLOPE)
