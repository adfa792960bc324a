"""Runs as files: what is kept, resumed, judged and refused."""

import json

import pytest
from tests.testbed.test_training import RECIPE

from depthdial.testbed import run as runs
from depthdial.testbed.judges import Answers
from depthdial.testbed.report import write
from depthdial.testbed.run import TestbedConfig, check_learned, result_of, run, unfolded
from depthdial.testbed.table import is_run, judged, tables


def _result(*which):
    found = result_of(*which)
    assert found is not None
    return found


def _config(folder, **fields):
    sizes = {"size": RECIPE.size, "rows": 4, "patience": 2, "settle": 2, "steps": 2, "texts": 8}
    return TestbedConfig(
        str(folder), **{"hops": 2, "entities": 7, "seeds": (0, 1), "methods": ("static frozen",), **sizes, **fields}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of models that have learned nothing, to judge all the same."""
    place = tmp_path_factory.mktemp("testbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "check_learned", lambda *_: None)
        run(_config(place))
    return place


def test_a_run_keeps_what_every_judge_needs(folder):
    told = judged(folder)
    assert list(told["dense"]) == [1, 2, 3, 4] and told["dense"][4]["cost"] == 1
    costs = [rung["cost"] for rung in told["dense"].values()]
    assert costs == sorted(costs) and 0 < costs[0] < 0.6
    static = told["methods"]["static frozen"]
    assert [seed["seed"] for seed in static["seeds"]] == [0, 1]
    assert static["cost"]["mean"] == pytest.approx(0.6, abs=0.25) and static["cost"]["half_width"] is not None
    for seed in static["seeds"]:
        rung = _result(folder, f"dense {seed['equal_dense']}", seed["seed"])
        assert rung["cost"] >= seed["cost"] or seed["equal_dense"] == 4, "dense of equal cost is never the cheaper one"
        assert len(set(seed["depth_by_k"].values())) == 1 and seed["rank_levels"] == 0, "static has one depth"


def test_counts_are_the_answers_themselves(folder):
    result = _result(folder, "static frozen", 0)
    own = unfolded(result["counts"])
    assert isinstance(own, Answers) and len(own.k) == sum(row[-1] for row in result["counts"]) > 50
    assert runs._figures(own, result["cost"]) == result


def test_resuming_makes_what_is_missing_and_nothing_else(folder, monkeypatch):
    missing = folder / "results" / "static-frozen-seed1.json"
    kept = missing.read_text()
    missing.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}
    asked = []
    run(_config(folder), resume=True, report=lambda name, *_: asked.append(name))
    assert json.loads(missing.read_text()) == json.loads(kept), "a resumed run gives what an uninterrupted one does"
    assert set(asked) == {"static frozen"}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_files_of_a_report(folder, tmp_path):
    assert is_run(folder) and not is_run(tmp_path)
    pytest.importorskip("matplotlib")
    told, text = write(folder, tmp_path, plots=True)
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report.json").read_text())["methods"].keys() == told["methods"].keys()
    assert (
        "static frozen" in text and "| need" in text and (tmp_path / "report.md").read_text().startswith(tables(told))
    )


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"task": "sums"}, "unknown task"),
        ({"hops": 4}, "beyond the vocabulary"),
        ({"methods": ("lora",)}, "unknown method 'lora'.*skiplayer 50%"),
        ({"size": "4"}, "size '4' cannot be read"),
        ({"seeds": (1, 1)}, "each of them once"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": -1.0}, "learning rates must be positive"),
        ({"texts": 0}, "texts must be at least 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(tmp_path, fields, line):
    with pytest.raises(ValueError, match=line):
        _config(tmp_path, **fields)


def test_folders_of_other_runs_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="add --resume"):
        run(_config(folder))
    with pytest.raises(ValueError, match=r"other settings \(steps\)"):
        run(_config(folder, steps=9), resume=True)
    with pytest.raises(ValueError, match="nothing to resume"):
        run(_config(tmp_path), resume=True)
    (tmp_path / "testbed.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        run(_config(tmp_path), resume=True)
    with pytest.raises(ValueError, match="cannot be read"):
        judged(tmp_path)


def test_a_size_that_has_not_learned_says_so(folder, tmp_path):
    own = unfolded(_result(folder, "dense 1", 0)["counts"])
    blind = own._replace(right=own.right & (own.k == 0))
    with pytest.raises(ValueError, match=r"4x2@16 has not learned hop in 2 \+ 2 steps.*by chance 14%.*--patience"):
        check_learned(blind, _config(tmp_path))
    check_learned(own._replace(right=own.right | (own.k == 1)), _config(tmp_path))
    with pytest.raises(ValueError, match="has not learned"):
        run(_config(tmp_path / "new", rows=1, lr=1e-9))
