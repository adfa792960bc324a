"""An output folder belongs to one run, which may grow."""

from __future__ import annotations

import copy
import json

import pytest

from depthdial.evaluate.folder import RUN, RunFolder
from depthdial.evaluate.subjects import TableRow

WHO = {
    "format": 1,
    "fixed": {"model": "m", "limit": 20},
    "tasks": {"piqa": "p"},
    "baselines": {"random": "r"},
}
ROW = TableRow("early exit 0.9", "baseline", "early exit", 0.9)
RECORD = {"task": "piqa", "score": 0.5, "values": [1.0, 0.0]}


def changed(**fields):
    return {**copy.deepcopy(WHO), **fields}


def test_records_come_back(tmp_path):
    folder = RunFolder(tmp_path / "new", WHO, False)
    assert folder.get(ROW, "piqa") is None
    folder.put(ROW, "piqa", RECORD)
    assert RunFolder(tmp_path / "new", WHO, True).get(ROW, "piqa") == RECORD
    assert (tmp_path / "new" / "records" / "early-exit-0.9--piqa.json").is_file()


def test_without_a_place_nothing_is_kept():
    folder = RunFolder(None, WHO, False)
    folder.put(ROW, "piqa", RECORD)
    assert folder.get(ROW, "piqa") is None


def test_a_run_goes_on_only_when_asked(tmp_path):
    RunFolder(tmp_path, WHO, False)
    with pytest.raises(ValueError, match="pass --resume"):
        RunFolder(tmp_path, WHO, False)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (changed(fixed={"model": "m", "limit": 30}), "holds another run: its limit is 20, not 30"),
        (changed(tasks={"piqa": "q"}), "other contents of 'piqa'"),
        (changed(baselines={"random": "s"}), "other contents of 'random'"),
        (changed(format=2), "another version"),
    ],
)
def test_another_run_is_refused(tmp_path, other, says):
    RunFolder(tmp_path, WHO, False)
    with pytest.raises(ValueError, match=says):
        RunFolder(tmp_path, other, True)
    assert json.loads((tmp_path / RUN).read_text()) == WHO


def test_tasks_and_baselines_are_added_and_not_forgotten(tmp_path):
    RunFolder(tmp_path, WHO, False)
    RunFolder(tmp_path, changed(tasks={"boolq": "b"}, baselines={}), True)
    content = json.loads((tmp_path / RUN).read_text())
    assert content["tasks"] == {"piqa": "p", "boolq": "b"} and content["baselines"] == {"random": "r"}
    with pytest.raises(ValueError, match="other contents of 'piqa'"):
        RunFolder(tmp_path, changed(tasks={"piqa": "new"}), True)


def test_what_a_killed_process_left_is_no_other_run(tmp_path):
    (tmp_path / ".run-0a1b2c3d.part.json").write_text("{")
    RunFolder(tmp_path, WHO, True)
    assert (tmp_path / RUN).is_file()


def test_places_that_are_taken(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no evaluation"):
        RunFolder(tmp_path, WHO, True)
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "letter.txt", WHO, False)
    (tmp_path / RUN).write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        RunFolder(tmp_path, WHO, True)
