"""Rows of a map and their Parquet columns."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthdial.core.dial import Dials
from depthdial.maps.parse import parse_facts, parse_table
from depthdial.maps.schema import KEY, DepthMap, Facts, MapRow, arrow_table, columns, pack_mask, unpack_mask
from depthdial.methods import Dense
from depthdial.models.convert import convert


def same(a: MapRow, b: MapRow) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(MapRow)]
    return all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f") if isinstance(x, np.ndarray) else x == y for x, y in pairs
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 40), st.randoms())
def test_masks_are_packed_and_unpacked(tokens, layers, random):
    ran = np.array([[random.random() < 0.5 for _ in range(layers)] for _ in range(tokens)], bool)
    ran = ran.reshape(tokens, layers)
    rows = pack_mask(ran)
    assert len(rows) == tokens * -(-layers // 8)
    assert np.array_equal(unpack_mask(rows, layers), ran)


def test_bit_i_is_layer_i():
    ran = np.zeros((1, 10), bool)
    ran[0, [0, 9]] = True
    assert pack_mask(ran) == bytes([0b00000001, 0b00000010])


def test_a_map_comes_back_from_its_table(tiny_map):
    back = parse_table(arrow_table(tiny_map), "it")
    assert back.facts == tiny_map.facts
    assert all(
        same(dataclasses.replace(a, alternatives=None), dataclasses.replace(b, alternatives=None))
        for a, b in zip(tiny_map.rows, back.rows, strict=True)
    )
    for a, b in zip(tiny_map.rows, back.rows, strict=True):
        assert a.alternatives is not None and b.alternatives is not None
        assert [[t for t, _ in choices] for choices in a.alternatives] == [[t for t, _ in c] for c in b.alternatives]
        assert a.alternatives[1][0][1] == pytest.approx(b.alternatives[1][0][1], abs=1e-3)


def test_what_was_not_recorded_is_null(made_up, six_layers):
    result = arrow_table(DepthMap(six_layers, [made_up([6, 3, 4], ran=None)]))
    assert {name for name in result.column_names if result[name].null_count} == {
        "cost", "run_mask", "scores", "entropy", "surprisal", "alternatives", "alternative_probs",
    }  # fmt: skip
    (row,) = parse_table(result, "it").rows
    assert row.ran is None and row.scores is None and row.alternatives is None


def test_starts_are_where_the_pieces_are(tiny_map):
    for row in tiny_map.rows:
        for piece, start in zip(row.pieces, row.starts, strict=True):
            assert row.text[start : start + len(piece)] == piece


def test_facts_are_those_of_the_model(tiny_converted):
    facts = Facts.of(tiny_converted, "tiny", 1.0, Dials(math.inf))
    assert (facts.layers, facts.routed, facts.always_on, facts.method) == (6, (2, 3, 4, 5), 2, "FlexiDepth")
    assert facts.to_json()["offset"] is None and parse_facts(facts.to_json(), "it") == facts


def test_another_plug_in_has_other_facts(tiny_model, adaptive):
    models = [adaptive(tiny_model("llama"), weights="hard") for _ in range(2)]
    facts = [Facts.of(model, "tiny") for model in models]
    assert facts[0] == facts[1]
    next(p for name, p in models[1].named_parameters() if ".parts." in name).data += 1
    assert Facts.of(models[1], "tiny") != facts[0]


def test_a_model_without_routers_has_facts(tiny_model):
    facts = Facts.of(convert(tiny_model("llama"), Dense()), "tiny")
    assert facts.always_on + len(facts.routed) == 6 and facts.plugin is None


def test_another_version_is_refused_by_name(tiny_map):
    newer = dataclasses.replace(tiny_map, facts=dataclasses.replace(tiny_map.facts, format_version=99))
    with pytest.raises(ValueError, match=r"here\.parquet is a map of format version 99; this depthdial reads 1"):
        parse_table(arrow_table(newer), "here.parquet")


@pytest.mark.parametrize("metadata", [None, {KEY: b"{"}, {KEY: b"[]"}, {b"other": b"1"}])
def test_other_tables_are_no_maps(metadata):
    result = pa.table({"a": [1]}).replace_schema_metadata(metadata)
    with pytest.raises(ValueError, match="it is not a depth map"):
        parse_table(result, "it")


def test_missing_columns_and_facts_are_named(tiny_map):
    with pytest.raises(ValueError, match="it lacks the columns entropy"):
        parse_table(arrow_table(tiny_map).drop_columns(["entropy"]), "it")
    with pytest.raises(ValueError, match="its facts lack 'layers'"):
        parse_facts({k: v for k, v in tiny_map.facts.to_json().items() if k != "layers"}, "it")


def test_hugging_face_datasets_reads_the_columns(tiny_map, tmp_path):
    from datasets import load_dataset

    from depthdial.maps.store import write_map

    write_map(tiny_map, tmp_path / "map.parquet")
    result = load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert result.column_names == columns().names
    row = result.with_format("numpy")[1]
    assert np.array_equal(row["layers_used"], tiny_map.rows[1].layers_used)
    assert np.allclose(row["scores"].reshape(-1, 4), tiny_map.rows[1].scores)
    assert np.array_equal(unpack_mask(row["run_mask"], 6), tiny_map.rows[1].ran)
