"""Break-even: from measured passes to "does skipping pay?", and kept on disk."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.engine.breakeven import BreakEven, Point, Trial, cached, measure

KEY = {"device": "a", "threads": "2"}


def machine(overhead: float, per_cost: float):
    """Passes that take overhead + per_cost * cost, dense ones exactly 1; the dial is the cost itself."""
    return lambda rows, offset: Trial(1.0, 1.0) if offset == math.inf else Trial(overhead + per_cost * offset, offset)


def of(run, offsets=(0.5, 0.9), rows=(1, 16)) -> BreakEven:
    return measure(run, KEY, 0.4, 1.01, offsets, rows, times=3)


@given(st.floats(0.0, 0.5), st.floats(0.1, 1.0))
def test_the_line_crosses_where_the_machine_says(overhead, per_cost):
    found = of(machine(overhead, per_cost))
    assert found.highest_cost(1) == pytest.approx(min(max((1 - overhead) / per_cost, 0.4), 1.01))


def test_skipping_pays_below_it():
    found = of(machine(0.2, 1.0))
    assert found.highest_cost(1) == pytest.approx(0.8)
    assert found.skip_pays(1, 0.79) and not found.skip_pays(1, 0.81)
    assert found.share(1) == pytest.approx((0.8 - 0.4) / (1.01 - 0.4))


def test_where_cost_buys_no_time_it_is_all_or_nothing():
    slow, fast = of(machine(1.1, 0.0)), of(machine(0.9, 0.0))
    assert slow.highest_cost(1) == 0.4 and slow.share(1) == 0.0 and not slow.skip_pays(1, 0.5)
    assert fast.highest_cost(1) == 1.01 and fast.share(1) == 1.0 and fast.skip_pays(1, 0.5)


def test_sizes_between_and_beyond_the_measured_ones():
    points = (Point(4, 0.5, 0.7), Point(4, 0.9, 1.1), Point(64, 0.5, 1.0), Point(64, 0.9, 1.4))
    found = BreakEven(KEY, 0.4, 1.01, points)
    assert found.highest_cost(4) == found.highest_cost(1) == pytest.approx(0.8)
    assert found.highest_cost(64) == found.highest_cost(500) == pytest.approx(0.5)
    assert found.highest_cost(16) == pytest.approx(0.65)  # half way in log(rows)


def test_a_dense_only_measurement_never_skips():
    assert BreakEven(KEY, 0.4, 1.01, (Point(1, 1.0, 1.0),)).highest_cost(1) == 0.4


def test_each_kind_is_run_once_untimed_and_then_in_turn():
    seen = []

    def run(rows, offset):
        seen.append((rows, offset))
        return Trial(1.0, 0.5)

    measure(run, KEY, 0.4, 1.01, (0.5,), (2,), times=2)
    assert seen == [(2, math.inf), (2, 0.5)] * 3


def test_it_is_kept_and_measured_once(tmp_path):
    made = of(machine(0.2, 1.0))
    folder, calls = tmp_path / "break-even", []

    def make():
        calls.append(1)
        return made

    assert cached(KEY, folder, make) == made == cached(KEY, folder, make)
    assert len(calls) == 1 and len(list(folder.iterdir())) == 1
    cached({**KEY, "threads": "4"}, folder, make)
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": {}}', "null"])
def test_a_broken_file_is_measured_anew(tmp_path, content):
    made = of(machine(0.2, 1.0))
    cached(KEY, tmp_path, lambda: made)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert cached(KEY, tmp_path, lambda: made) == made
    assert json.loads(path.read_text())["floor"] == 0.4


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    made = of(machine(0.2, 1.0))
    assert cached(KEY, tmp_path / "file", lambda: made) == made
