"""Checkpoints and settings of a run: the newest whole one, half-written ones swept, no run over another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthdial.train.checkpoints import STATE_FILE, last_checkpoint, step_of, sweep, to_resume
from depthdial.train.settings import check_output, told, write_settings


@dataclasses.dataclass(frozen=True)
class Told:
    output: str
    lr: float = 0.1
    device: str = "cpu"


def written(folder: Path, step: int, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state is not None:
        (path / STATE_FILE).write_text(state)
    return path


@given(steps=st.sets(st.integers(1, 2000), min_size=1, max_size=5), torn=st.sets(st.integers(2001, 3000), max_size=3))
def test_the_newest_whole_one_is_taken_and_the_torn_are_swept(tmp_path_factory, steps: set[int], torn: set[int]):
    folder = tmp_path_factory.mktemp("run")
    whole = {step: written(folder, step) for step in steps}
    for i, step in enumerate(torn):
        written(folder, step, (None, "", "{")[i % 3])
    assert last_checkpoint(folder) == whole[max(steps)] and step_of(whole[max(steps)]) == max(steps)
    sweep(folder)
    assert {step_of(path) for path in folder.iterdir()} == steps


def test_nothing_to_resume(tmp_path: Path):
    assert to_resume(tmp_path, False) is None and last_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="nothing to resume"):
        to_resume(tmp_path, True)


def test_a_run_is_continued_as_it_was_told_and_never_overwritten(tmp_path: Path):
    config = Told(str(tmp_path))
    with pytest.raises(ValueError, match="nothing to resume"):
        check_output(config, True, "told.json", ())
    assert check_output(config, False, "told.json", ()) == tmp_path
    write_settings(tmp_path, told(config), "told.json")
    assert json.loads((tmp_path / "told.json").read_text()) == told(config)
    written(tmp_path / "checkpoints", 3, None)
    check_output(config, False, "told.json", ())  # what a killed run left half-written is no run
    written(tmp_path / "checkpoints", 2)
    with pytest.raises(ValueError, match="add --resume"):
        check_output(config, False, "told.json", ())
    check_output(dataclasses.replace(config, device="cuda"), True, "told.json", ("device",))
    with pytest.raises(ValueError, match=r"other settings \(lr\)"):
        check_output(dataclasses.replace(config, lr=1.0), True, "told.json", ("device",))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        check_output(Told(str(tmp_path / "file")), False, "told.json", ())
