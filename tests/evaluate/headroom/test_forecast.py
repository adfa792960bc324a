"""The constants are those of the recorded figures that they are said to be fitted on, and of no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depthdial.evaluate.headroom.forecast import kept

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def figures(file: str, figure: str) -> dict[str, dict[float, float]]:
    """Of all text, by subject and budget."""
    subjects = json.loads((RESULTS / f"{file}.json").read_text())["subjects"]
    return {s["name"]: {p["budget"]: p["groups"]["all"][figure] for p in s["points"]} for s in subjects}


def test_trained_static_and_random_plug_ins_keep_what_is_said():
    kl, nll = (figures("2026-11-22-2cpu-quality-all", name) for name in ("kl", "ce"))
    base = json.loads((RESULTS / "2026-11-22-2cpu-quality-all.json").read_text())["base"]["all"]["ce"]
    for name in ("static", "random"):
        for budget, lost in kl[f"{name}, no adapters"].items():
            assert kept(lost, budget) == pytest.approx(nll[name][budget] - base, rel=0.09)


def test_little_is_kept_as_it_is_and_more_of_less():
    assert kept(0.0, 0.9) == 0.0
    assert kept(1e-6, 0.9) == pytest.approx(1e-6, rel=0.01)
    shares = [kept(lost, 0.8) / lost for lost in (0.01, 0.1, 1.0, 10.0)]
    assert shares == sorted(shares, reverse=True) and kept(0.2 * 2.34, 0.8) == pytest.approx(0.1 * 2.34)
    assert kept(0.1, 0.8) > kept(0.1, 0.9), "the same loss for more that is saved is a milder one"
