"""Rows: which dense engine each is compared with, and what a missing one says."""

from __future__ import annotations

import pytest

from depthdial.evaluate.speed.measure import RegimeRuns
from depthdial.evaluate.speed.rows import speed_rows
from depthdial.evaluate.speed.subjects import Kind, Regime, SpeedSubject, TimedRun

REGIME = Regime("decode", 1, 4, 3)
DENSE = {"bf16": "our dense, bf16", "int8": "our dense, int8"}


class Named(SpeedSubject):
    def __init__(self, name: str, kind: Kind, precision: str):
        self.name, self.kind, self.precision = name, kind, precision

    def run(self, prompts, new_tokens):
        raise AssertionError("rows run nothing")


def test_a_peer_is_compared_at_the_precision_most_like_its_own():
    peers = [Named("llama.cpp", "peer", precision) for precision in ("bf16", "q8_0", "q4_1")]
    subjects = [Named("our dense", "dense", "bf16"), Named("our dense", "dense", "int8"), *peers]
    times = {"our dense, bf16": 4.0, "our dense, int8": 2.0}
    runs = {s.title: [TimedRun(1.0, times.get(s.title, 8.0), 2, 2)] for s in subjects}
    rows = speed_rows(RegimeRuns(REGIME, runs), subjects, {}, DENSE)
    assert [row["speedup_over"] for row in rows[1:]] == [DENSE["bf16"], DENSE["bf16"], DENSE["int8"], DENSE["bf16"]]
    assert [row["speedup"] for row in rows] == pytest.approx([1.0, 2.0, 0.5, 0.25, 0.5])
    assert [row["times_dense"] for row in rows] == pytest.approx([1.0, 2.0, 0.5, 0.5, 0.5])
    assert rows[0]["first_token_seconds"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert rows[0]["tokens_per_second"] == {"median": 0.5, "low": 0.5, "high": 0.5} and rows[0]["cost"] is None


def test_a_missing_row_says_why_and_nothing_else():
    peer = Named("TIDE", "peer", "bf16")
    (row,) = speed_rows(RegimeRuns(REGIME, {}, {"TIDE, bf16": "no torch"}), [peer], {}, DENSE)
    assert row["missing"] == "no torch" and "speedup" not in row
    assert speed_rows(RegimeRuns(REGIME), [peer], {}, DENSE) == []
