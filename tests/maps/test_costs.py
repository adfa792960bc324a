"""Costs of prompts and of answers, told apart in everything that is made of a map."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from rich.console import Console

from depthdial.maps.costs import MapCosts
from depthdial.maps.html import map_page
from depthdial.maps.parse import parse_facts
from depthdial.maps.schema import KEY, DepthMap, arrow_table, columns
from depthdial.maps.store import read_map, write_map
from depthdial.maps.summary import summarise
from depthdial.maps.table import tables


@pytest.fixture
def facts(six_layers):
    return dataclasses.replace(six_layers, prompt_budget=1.0, prompt_offset=math.inf)


@pytest.fixture
def rows(made_up):
    """Prompts of two tokens that cost 1; an answer that costs 0.5, and a longer one 0.8; one pass is not known."""
    marks = [np.arange(n) > 1 for n in (4, 8)]
    costs = [np.array([1, 1, 0.5, 0.5]), np.array([1, 1, *[0.8] * 5, math.nan])]
    return [
        made_up([6, 6, *[3] * (len(m) - 2)], id=str(i), generated=m, cost=c.astype(np.float32))
        for i, (m, c) in enumerate(zip(marks, costs, strict=True))
    ]


def test_they_are_means_over_tokens(facts, rows):
    costs = MapCosts()
    assert list(costs.counting([DepthMap(facts, rows)])) == [DepthMap(facts, rows)]
    result = costs.intervals()
    assert result["prompt_cost"].mean == 1 and result["cost"].mean == pytest.approx((2 * 0.5 + 5 * 0.8) / 7)
    assert result["cost"].low < result["cost"].mean < result["cost"].high


def test_a_map_on_disk_has_them_and_its_tables_tell_them(facts, rows, tmp_path):
    place = write_map(DepthMap(facts, rows), tmp_path / "map.parquet")
    content = read_map(place)
    assert content.facts == facts
    for a, b in zip(content.rows, rows, strict=True):
        assert a.cost is not None and b.cost is not None and np.array_equal(a.cost, b.cost, equal_nan=True)
    summary = summarise(place)
    data = summary.to_json()
    assert data["prompt_cost"]["mean"] == 1 and data["cost"]["mean"] == pytest.approx(5 / 7)
    console = Console(width=200, record=True)
    for part in tables(summary):
        console.print(part)
    text = console.export_text()
    assert "budget 0.8, prompt budget 1:" in text and "true cost relative to dense: prompts 1.000" in text
    assert "answers 0.714" in text


def test_a_page_tells_them_of_each_text(facts, rows):
    picture = map_page([DepthMap(facts, rows)])
    assert "true cost: prompt 1.000, answer 0.714" in picture and "budget 0.8, prompt budget 1" in picture
    assert "true cost: prompt 1.000, answer 0.500" in picture


def test_maps_of_before_there_were_two_dials_are_read(facts, rows, tmp_path):
    import json

    import pyarrow.parquet as parquet

    old = {k: v for k, v in facts.to_json().items() if not k.startswith("prompt_")}
    result = arrow_table(DepthMap(facts, rows)).drop_columns(["cost"]).replace_schema_metadata({KEY: json.dumps(old)})
    parquet.write_table(result, tmp_path / "old.parquet")
    content = read_map(tmp_path / "old.parquet")
    assert content.facts.prompt_budget == "same" and content.facts.reading == content.facts.offset
    assert all(row.cost is None for row in content.rows) and "true cost" not in map_page([content])
    assert "prompt_cost" not in summarise(tmp_path / "old.parquet").to_json()
    assert result.num_columns == len(columns()) - 1


@pytest.mark.parametrize(
    ("name", "value"), [("prompt_budget", "full"), ("prompt_offset", "far"), ("prompt_offset", [])]
)
def test_what_is_no_dial_is_refused(facts, name, value):
    with pytest.raises(ValueError, match=f"its `{name}` must be a number or null"):
        parse_facts({**facts.to_json(), name: value}, "file")
