"""Tables and picture of a results file: every method and budget is there, what is missing is said."""

from __future__ import annotations

from typing import Any

import pytest

from heldout.plot import draw
from heldout.table import class_table, kl_table, layers_table, quality_table, router_table


def point(budget: float, ratio: float, known: bool = True) -> dict[str, Any]:
    found = {"cost": budget, "ratio": ratio, "kl": ratio - 1, "layers": 25.0 if known else None}
    found |= {"ratio_low": ratio - 0.01 if known else None, "ratio_high": ratio + 0.01 if known else None}
    return {"budget": budget, "groups": {"all": found}}


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "text": {"groups": {"all": 51234}},
        "subjects": [
            {"name": "flexidepth", "trained": True, "points": [point(1.0, 1.0), point(0.8, 1.2)]},
            {"name": "static, no adapters", "trained": False, "points": [point(1.0, 1.0, known=False)]},
        ],
    }


def test_tables(results):
    assert quality_table(results).splitlines() == [
        "| method \\ true cost | 1 | 0.8 |",
        "| --- | --- | --- |",
        "| flexidepth | 1.000 ±0.010 | 1.200 ±0.010 |",
        "| static, no adapters | 1.000 | out of reach |",
    ]
    assert "| 0.000 | 0.200 |" in kl_table(results)
    assert "| 0.800 / 25.0 |" in layers_table(results)


def test_router_table():
    layer = {"layer": 7, "run_rate": 0.999, "by_group": {"prose": 1.0}, "score_std": None, "minority": 0.001}
    lines = router_table({"layers": [layer | {"static": True}]}).splitlines()
    assert lines[0] == "| layer | run rate | prose | std of score | against majority |  |"
    assert lines[2] == "| 7 | 0.999 | 1.000 | – | 0.001 | static in effect |"


def test_class_table_is_sorted_by_depth():
    rows = [
        {"name": "number", "tokens": 1200, "layers": 28.0, "low": 27.5, "high": 28.5},
        {"name": "end mark", "tokens": 1, "layers": 20.0, "low": None, "high": None},
    ]
    lines = class_table(rows).splitlines()[2:]
    assert lines == ["| end mark | 1 | 20.00 | – |", "| number | 1,200 | 28.00 | 27.50 to 28.50 |"]


def test_picture(results, tmp_path):
    pytest.importorskip("matplotlib")
    draw(results, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["quality.png"]
