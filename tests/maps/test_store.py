"""Maps on disk, and folders that belong to another run."""

from __future__ import annotations

import dataclasses
import json

import pytest

from depthdial.maps.folder import Folder, told_of
from depthdial.maps.schema import DepthMap
from depthdial.maps.store import part_file, read, read_parts, read_run, write


@pytest.fixture
def told(tiny_map):
    return told_of(tiny_map.facts, {"prompts": "a.jsonl", "sha256": "1"}, {"max_new_tokens": 4})


def test_a_file_and_a_folder_come_back(tiny_map, tmp_path, told):
    alone = write(tiny_map, tmp_path / "deep" / "map.parquet")
    assert [row.text for row in read(alone).rows] == [row.text for row in tiny_map.rows]
    assert [path.name for path in alone.parent.iterdir()] == ["map.parquet"]
    folder = Folder(tmp_path / "map", told)
    for number, row in enumerate(tiny_map.rows):
        write(DepthMap(tiny_map.facts, [row]), part_file(folder.path, number))
    back = read(folder.path)
    assert back.facts == tiny_map.facts and [row.id for row in back.rows] == [row.id for row in tiny_map.rows]
    assert len(list(read_parts(folder.path))) == len(folder.parts) == 3


def test_a_folder_of_another_run_is_refused(tmp_path, told):
    path = Folder(tmp_path / "map", told).path
    Folder(path, told)  # nothing is there yet
    for change, said in [
        ({"settings": {"max_new_tokens": 5}}, "its settings have max_new_tokens 4, not 5"),
        ({"prompts": {"prompts": "a.jsonl", "sha256": "2"}}, "its prompts have sha256 '1', not '2'"),
        ({"facts": {**told["facts"], "budget": 0.7}}, "its facts have budget 0.8, not 0.7"),
    ]:
        with pytest.raises(ValueError, match=f"holds another map: {said}; choose another --output"):
            Folder(path, {**told, **change}, resume=True)


def test_the_same_run_goes_on_when_asked_to(tmp_path, told, tiny_map):
    path = Folder(tmp_path / "map", told).path
    write(tiny_map, part_file(path, 2))
    with pytest.raises(ValueError, match="pass --resume"):
        Folder(path, told)
    Folder(path, told, resume=True)
    Folder(path, told, mine=range(1, 4, 2))  # another shard
    with pytest.raises(ValueError, match="pass --resume"):
        Folder(path, told, mine=range(0, 4, 2))


def test_a_folder_of_something_else_is_refused(tmp_path, told):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="exists and is no map"):
        Folder(tmp_path, told)
    with pytest.raises(ValueError, match="exists and is no map"):
        Folder(tmp_path / "thesis.tex", told)


def test_another_version_and_damage_are_refused_in_one_line(tmp_path, told, tiny_map):
    path = Folder(tmp_path / "map", told).path
    with pytest.raises(ValueError, match="holds no part of a map yet"):
        read(path)
    run = json.loads((path / "map.json").read_text())
    newer = dataclasses.replace(tiny_map, facts=dataclasses.replace(tiny_map.facts, format_version=2))
    file = write(newer, part_file(path, 0))
    with pytest.raises(ValueError, match=r"part-00000\.parquet is a map of format version 2; this depthdial reads 1"):
        read(path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"part-00000\.parquet is damaged"):
        read(path)
    (path / "map.json").write_text(json.dumps({**run, "format_version": 2}))
    with pytest.raises(ValueError, match="format version 2; this depthdial reads 1"):
        Folder(path, told, resume=True)
    (path / "map.json").write_text("{")
    with pytest.raises(ValueError, match=r"map\.json is damaged"):
        read_run(path)


def test_what_is_no_map_is_refused(tmp_path, tiny_map):
    with pytest.raises(ValueError, match="no such map"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match=r"not a depth map: it has no map\.json"):
        read(tmp_path)
    with pytest.raises(ValueError, match="holds no text yet"):
        read(write(DepthMap(tiny_map.facts, []), tmp_path / "empty.parquet"))


def test_parts_of_different_maps_are_not_mixed(tmp_path, told, tiny_map):
    path = Folder(tmp_path / "map", told).path
    write(tiny_map, part_file(path, 0))
    write(dataclasses.replace(tiny_map, facts=dataclasses.replace(tiny_map.facts, budget=0.7)), part_file(path, 1))
    with pytest.raises(ValueError, match="parts of different maps"):
        read(path)
