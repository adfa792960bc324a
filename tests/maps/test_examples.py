"""The Ray example without Ray, and the recipe of the shipped map, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from depthdial.maps.parse import parse_table

ROOT = Path(__file__).parents[2]


def loaded(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_ray_worker_maps_blocks(tiny_folder, tiny_plugin):
    worker = loaded("examples/map_on_ray.py").MapTexts(
        str(tiny_folder), str(tiny_plugin), 0.9, device="cpu", max_new_tokens=3
    )
    block = pa.table({"prompt": ["the fox", "2 + 2"], "answer": [None, " = 4"], "id": ["a", "b"]})
    result = parse_table(worker(block), "block")
    assert [row.id for row in result.rows] == ["a", "b"] and result.facts.budget == 0.9
    assert [row.forced for row in result.rows] == [False, True] and result.rows[0].generated.sum() <= 3
    with pytest.raises(ValueError, match="row 0 has no `prompt`"):
        worker(pa.table({"text": ["a"]}))


@pytest.mark.slow
def test_the_recipe_needs_no_second_command(tiny_folder, tiny_plugin, tmp_path, monkeypatch):
    recipe = loaded("recipes/map_smollm2.py")
    # passages of English are longer than the tiny model's context
    monkeypatch.setattr("depthdial.maps.tasks.TASKS", ("repeat", "add"))
    out = tmp_path / "map"
    words = ["--model", str(tiny_folder), "--plugin", str(tiny_plugin), "--dtype", "float32", "--count", "3"]
    recipe.main([str(out), *words, "--budget", "0.8"])
    recipe.main([str(out), *words, "--budget", "0.8"])  # finished: goes on to the pictures
    assert {"README.md", "map.json", "data", "read", "summary.json", "summary.png", "page.html"} == {
        path.name for path in out.iterdir()
    }
    assert json.loads((out / "read" / "summary.json").read_text())["view"] == "read"
