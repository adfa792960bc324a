"""Maps on disk, and folders that belong to another run."""

from __future__ import annotations

import dataclasses
import json

import pytest

from depthdial.maps import folder
from depthdial.maps.folder import MapFolder, map_identity
from depthdial.maps.schema import DepthMap
from depthdial.maps.store import part_file, read_map, read_map_parts, read_run, write_map
from depthdial.maps.summary import summarise


@pytest.fixture
def told(tiny_map):
    return map_identity(tiny_map.facts, "b4", {"prompts": "a.jsonl", "sha256": "1"}, {"max_new_tokens": 4})


def test_a_file_and_a_folder_come_back(tiny_map, tmp_path, told):
    alone = write_map(tiny_map, tmp_path / "deep" / "map.parquet")
    assert [row.text for row in read_map(alone).rows] == [row.text for row in tiny_map.rows]
    assert [path.name for path in alone.parent.iterdir()] == ["map.parquet"]
    output = MapFolder(tmp_path / "map", told)
    for number, row in enumerate(tiny_map.rows):
        write_map(DepthMap(tiny_map.facts, [row]), part_file(output.path, number))
    back = read_map(output.path)
    assert back.facts == tiny_map.facts and [row.id for row in back.rows] == [row.id for row in tiny_map.rows]
    assert len(list(read_map_parts(output.path))) == len(output.parts) == 3


def test_a_folder_of_another_run_is_refused(tmp_path, told):
    path = MapFolder(tmp_path / "map", told).path
    MapFolder(path, told)  # nothing is there yet
    for change, message in [
        ({"settings": {"max_new_tokens": 5}}, "its settings have max_new_tokens 4, not 5"),
        ({"weights": "b5"}, "its weights are 'b4', not 'b5'"),
        ({"prompts": {"prompts": "a.jsonl", "sha256": "2"}}, "its prompts have sha256 '1', not '2'"),
        ({"facts": {**told["facts"], "budget": 0.7}}, "its facts have budget 0.8, not 0.7"),
    ]:
        with pytest.raises(ValueError, match=f"holds another map: {message}; choose another --output"):
            MapFolder(path, {**told, **change}, resume=True)


def test_the_same_run_goes_on_when_asked_to(tmp_path, told, tiny_map):
    path = MapFolder(tmp_path / "map", told).path
    write_map(tiny_map, part_file(path, 2))
    with pytest.raises(ValueError, match="pass --resume"):
        MapFolder(path, told)
    MapFolder(path, told, resume=True)
    MapFolder(path, told, mine=range(1, 4, 2))  # another shard
    with pytest.raises(ValueError, match="pass --resume"):
        MapFolder(path, told, mine=range(0, 4, 2))


def test_what_a_killed_claim_left_is_no_other_map(tmp_path, told):
    (tmp_path / "data").mkdir()
    (tmp_path / ".map-0a1b2c3d.part.json").write_text("{")
    MapFolder(tmp_path, told)
    assert read_run(tmp_path)["weights"] == "b4"


def test_two_shards_may_claim_a_folder_at_once(tmp_path, told, monkeypatch):
    """The other one claims it after this one has looked."""
    other = {**told, "weights": "b5"}
    write_new = folder.write_new

    def overtaken(path, text):
        write_new(path, text.replace("b5", "b4"))
        write_new(path, text)

    place = tmp_path / "deep"
    monkeypatch.setattr(folder, "write_new", overtaken)
    with pytest.raises(ValueError, match="holds another map: its weights"):
        MapFolder(place, other)


def test_a_damaged_page_is_told_with_its_file(tmp_path, tiny_map):
    file = write_map(tiny_map, tmp_path / "map.parquet")
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(len(content[4:2000]))  # the footer still stands
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"map\.parquet is damaged"):
        read_map(file)


def test_a_folder_of_something_else_is_refused(tmp_path, told):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="exists and is no map"):
        MapFolder(tmp_path, told)
    with pytest.raises(ValueError, match="exists and is no map"):
        MapFolder(tmp_path / "thesis.tex", told)


def test_another_version_and_damage_are_refused_in_one_line(tmp_path, told, tiny_map):
    path = MapFolder(tmp_path / "map", told).path
    with pytest.raises(ValueError, match="holds no part of a map yet"):
        read_map(path)
    run = json.loads((path / "map.json").read_text())
    newer = dataclasses.replace(tiny_map, facts=dataclasses.replace(tiny_map.facts, format_version=2))
    file = write_map(newer, part_file(path, 0))
    with pytest.raises(ValueError, match=r"part-00000\.parquet is a map of format version 2; this depthdial reads 1"):
        read_map(path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"part-00000\.parquet is damaged"):
        read_map(path)
    (path / "map.json").write_text(json.dumps({**run, "format_version": 2}))
    with pytest.raises(ValueError, match="format version 2; this depthdial reads 1"):
        MapFolder(path, told, resume=True)
    (path / "map.json").write_text("{")
    with pytest.raises(ValueError, match=r"map\.json is damaged"):
        read_run(path)


def test_what_is_no_map_is_refused(tmp_path, tiny_map):
    with pytest.raises(ValueError, match="no such map"):
        read_map(tmp_path / "none")
    with pytest.raises(ValueError, match=r"not a depth map: it has no map\.json"):
        read_map(tmp_path)
    with pytest.raises(ValueError, match="holds no text yet"):
        read_map(write_map(DepthMap(tiny_map.facts, []), tmp_path / "empty.parquet"))


def test_parts_of_different_maps_are_not_mixed(tmp_path, told, tiny_map):
    path = MapFolder(tmp_path / "map", told).path
    write_map(tiny_map, part_file(path, 0))
    write_map(dataclasses.replace(tiny_map, facts=dataclasses.replace(tiny_map.facts, budget=0.7)), part_file(path, 1))
    with pytest.raises(ValueError, match="parts of different maps"):
        read_map(path)
    with pytest.raises(ValueError, match="parts of different maps"):
        summarise(path)
