"""From a budget to an offset, and back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.core.dial import Curve

CURVE = Curve((-2.0, 0.0, 1.0), (0.7, 0.8, 0.9), (0.4, 0.2, 0.1))
steps = st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 0.1), st.floats(0, 3)), min_size=2, max_size=12)


def curve_of(steps: list[tuple[float, float, float]]) -> Curve:
    """A curve from rises of offset and cost."""
    offset, cost, points = -3.0, 0.2, []
    for rise, more, kl in steps:
        offset, cost = offset + rise, cost + more * 0.6
        points.append((offset, min(cost, 0.999), kl))
    return Curve.fit(points)


@pytest.mark.parametrize(
    ("budget", "offset", "kl"),
    [(0.7, -2.0, 0.4), (0.75, -1.0, 0.3), (0.8, 0.0, 0.2), (0.85, 0.5, 0.15), (0.9, 1.0, 0.1), (0.97, 1.0, 0.1)],
)
def test_linear_between_points_and_flat_above_the_last(budget: float, offset: float, kl: float):
    assert CURVE.offset(budget) == pytest.approx(offset)
    assert CURVE.kl(budget) == pytest.approx(kl)


def test_a_dial_with_stops_takes_the_next_lower_one_and_says_which():
    stops = Curve((0.5, 1.5, 2.5), (0.7, 0.8, 0.9), (0.4, 0.2, 0.1), step=1.0)
    for budget, offset, stop in (
        (0.7, 0.5, 0.7),
        (0.79, 0.5, 0.7),
        (0.8, 1.5, 0.8),
        (0.95, 2.5, 0.9),
        (1.0, math.inf, 1.0),
    ):
        assert (stops.offset(budget), stops.stop(budget)) == (offset, stop)
    assert CURVE.stop(0.8) is None
    with pytest.raises(ValueError, match="outside"):
        stops.stop(0.6)


def test_one_is_the_untouched_base():
    assert CURVE.offset(1.0) == CURVE.offset(1) == math.inf
    assert CURVE.kl(1.0) == 0.0
    assert CURVE.floor == 0.7


@pytest.mark.parametrize("budget", [0.699, 1.001, 0.0, -1.0, math.nan, math.inf, -math.inf, "0.8", None])
def test_budgets_outside_are_refused_with_the_range(budget):
    for ask in (CURVE.offset, CURVE.kl):
        with pytest.raises(ValueError, match=r"0\.700 to 1\.0") as caught:
            ask(budget)
        assert "\n" not in str(caught.value)


@given(steps)
def test_the_range_in_the_message_is_a_range_that_works(steps):
    curve = curve_of(steps)
    with pytest.raises(ValueError, match="is outside") as caught:
        curve.offset(curve.floor - 0.1)
    least = float(str(caught.value).split("can do: ")[1].split()[0])
    assert math.isfinite(curve.offset(least)) or least == 1.0


@given(steps, st.floats(0, 1), st.floats(0, 1))
def test_more_budget_is_never_a_lower_offset(steps, a: float, b: float):
    curve = curve_of(steps)
    low, high = sorted(curve.floor + t * (1 - curve.floor) for t in (a, b))
    low, high = min(low, 1.0), min(high, 1.0)
    assert curve.offset(low) <= curve.offset(high)
    assert curve.offsets[0] <= curve.offset(low)


@given(steps, st.data())
def test_offset_undoes_cost(steps, data):
    curve = curve_of(steps)
    i = data.draw(st.integers(1, len(curve.offsets) - 1))
    t = data.draw(st.floats(0, 1))
    cost = curve.costs[i - 1] + t * (curve.costs[i] - curve.costs[i - 1])
    offset = curve.offset(cost)
    j = max(1, sum(o < offset for o in curve.offsets))
    share = (offset - curve.offsets[j - 1]) / (curve.offsets[j] - curve.offsets[j - 1])
    assert curve.costs[j - 1] + share * (curve.costs[j] - curve.costs[j - 1]) == pytest.approx(cost, abs=1e-9)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (((0.0,), (0.8,), (0.1,)), "two points"),
        (((), (), ()), "two points"),
        (((0.0, 1.0), (0.8,), (0.1, 0.1)), "two points"),
        (((0.0, 0.0), (0.8, 0.9), (0.1, 0.1)), "offsets .* rise"),
        (((1.0, 0.0), (0.8, 0.9), (0.1, 0.1)), "offsets .* rise"),
        (((0.0, 1.0), (0.9, 0.8), (0.1, 0.1)), "costs .* not fall"),
    ],
)
def test_curves_that_are_none(columns, reason: str):
    with pytest.raises(ValueError, match=reason):
        Curve(*columns)


def test_fit_sorts_and_levels_small_dips():
    curve = Curve.fit([(1.0, 0.9, 0.1), (-1.0, 0.7, 0.3), (0.0, 0.95, 0.2)])
    assert curve == Curve((-1.0, 0.0, 1.0), (0.7, 0.95, 0.95), (0.3, 0.2, 0.1))
    assert curve.offset(0.95) == 0.0


def test_a_budget_is_held_from_where_the_curve_says():
    hold = CURVE.hold(0.8)
    assert hold is not None and hold.start == CURVE.offset(0.8) and hold.slope == pytest.approx(0.1 / 1.5)
    steps = Curve((-1.0, 0.0, 1.0), (0.7, 0.8, 0.9), (0.4, 0.2, 0.1), step=1.0)
    held = steps.hold(0.86)
    assert held is not None and held.start == pytest.approx(0.6) and steps.offset(0.86) == 0.0
    for budget in (0.7, 0.9, 0.97):
        edge = CURVE.hold(budget)
        assert edge is not None and edge.start == CURVE.offset(budget) and edge.slope > 0
    assert CURVE.hold(1.0) is None
    with pytest.raises(ValueError, match=r"0\.700 to 1\.0"):
        CURVE.hold(0.6)


@given(steps, st.floats(0, 1))
def test_any_budget_of_a_curve_can_be_held(steps, share: float):
    curve = curve_of(steps)
    hold = curve.hold(min(1.0, curve.floor + share * (1 - curve.floor)))
    assert hold is None or (math.isfinite(hold.start) and math.isfinite(hold.slope) and hold.slope >= 0)


def test_steps_may_differ_in_width():
    curve = Curve((-1.3, 0.1, 0.2, 2.5), (0.7, 0.8, 0.8, 0.9), (0.4, 0.2, 0.2, 0.1), step=1.27)
    assert [curve.offset(budget) for budget in (0.7, 0.79, 0.8, 0.89, 0.9, 0.95)] == [-1.3, -1.3, 0.2, 0.2, 2.5, 2.5]
