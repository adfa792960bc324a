"""Checkpoints and settings of a run: the newest whole one, half-written ones swept, no run over another."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from depthdial.train.checkpoints import (
    SEAL_FILE,
    STATE_FILE,
    damage,
    last_checkpoint,
    seal,
    step_of,
    sweep,
    to_resume,
)
from depthdial.train.settings import check_output, claim, config_json, write_settings


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


DAMAGES = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "a byte changed": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "gone": lambda path: path.unlink(),
}


def sealed(folder: Path, step: int) -> Path:
    """A checkpoint of several formats, as small as they can be."""
    path = written(folder, step)
    save_file({"a": torch.arange(100.0)}, path / "model.safetensors")
    torch.save({"step": step, "m": torch.arange(100.0)}, path / "optimizer.pt")
    (path / "global_step").mkdir()
    (path / "global_step" / "shard.pt").write_bytes(b"of a process")
    seal(path)
    return path


@pytest.mark.parametrize("damage_to", DAMAGES)
@pytest.mark.parametrize("name", [STATE_FILE, SEAL_FILE, "model.safetensors", "optimizer.pt", "global_step/shard.pt"])
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, caplog, name: str, damage_to: str):
    good, bad = sealed(tmp_path, 3), sealed(tmp_path, 6)
    assert damage(bad) is None and last_checkpoint(tmp_path) == bad
    DAMAGES[damage_to](bad / name)
    assert last_checkpoint(tmp_path) == good
    assert to_resume(tmp_path, True) == good and not bad.exists()
    if (name, damage_to) != (SEAL_FILE, "gone"):  # that one was never written to its end
        assert "checkpoint-6 is damaged" in caplog.text and "older checkpoint-3" in caplog.text


def test_where_all_are_damaged_nothing_is_removed(tmp_path: Path):
    for step in (3, 6):
        DAMAGES["cut in half"](sealed(tmp_path, step) / "optimizer.pt")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged \(in checkpoint-6 optimizer.pt has"):
        to_resume(tmp_path, True)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", STATE_FILE])
def test_checkpoints_of_before_there_were_seals_are_read_to_their_ends(tmp_path: Path, name: str):
    good, bad = sealed(tmp_path, 3), sealed(tmp_path, 6)
    for path in (good, bad):
        (path / SEAL_FILE).unlink()
    assert last_checkpoint(tmp_path) == bad
    (bad / name).write_bytes((bad / name).read_bytes()[:-1])
    assert last_checkpoint(tmp_path) == good


def test_one_without_a_seal_beside_sealed_ones_was_not_written_to_its_end(tmp_path: Path):
    good, torn = sealed(tmp_path, 3), sealed(tmp_path, 6)
    (torn / SEAL_FILE).unlink()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == good
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-best"]


def test_nothing_to_resume(tmp_path: Path):
    assert to_resume(tmp_path, False) is None and last_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="nothing to resume"):
        to_resume(tmp_path, True)


def test_a_run_is_continued_as_it_was_told_and_never_overwritten(tmp_path: Path):
    config = Told(str(tmp_path))
    with pytest.raises(ValueError, match="nothing to resume"):
        check_output(config, True, "told.json", ())
    assert check_output(config, False, "told.json", ()) == tmp_path
    write_settings(tmp_path, config_json(config), "told.json")
    assert json.loads((tmp_path / "told.json").read_text()) == config_json(config)
    written(tmp_path / "checkpoints", 3, None)
    check_output(config, False, "told.json", ())  # what a killed run left half-written is no run
    written(tmp_path / "checkpoints", 2)
    with pytest.raises(ValueError, match="add --resume"):
        check_output(config, False, "told.json", ())
    check_output(dataclasses.replace(config, device="cuda"), True, "told.json", ("device",))
    with pytest.raises(ValueError, match=r"other settings \(lr\)"):
        check_output(dataclasses.replace(config, lr=1.0), True, "told.json", ("device",))
    (tmp_path / "told.json").write_text('{"output"')
    with pytest.raises(ValueError, match=r"told\.json is damaged"):
        check_output(config, True, "told.json", ())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        check_output(Told(str(tmp_path / "file")), False, "told.json", ())


def test_what_no_run_wrote_is_not_written_over(tmp_path: Path):
    def refused(resume: bool = False) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at what it says
            check_output(Told(str(tmp_path)), resume, "told.json", (), begins=("rows",))
        return str(caught.value)

    (tmp_path / "rows").mkdir()
    (tmp_path / ".cache").mkdir()
    check_output(Told(str(tmp_path)), False, "told.json", (), begins=("rows",))
    (tmp_path / "told.json").write_text('{"name": "of another program"}')
    assert "holds told.json" in refused() and "of another program" in refused(resume=True)
    write_settings(tmp_path, config_json(Told(str(tmp_path))), "told.json")
    (tmp_path / "metrics.jsonl").write_text("")
    check_output(Told(str(tmp_path)), False, "told.json", (), begins=("rows",))
    (tmp_path / "config.json").write_text("{}")
    assert "holds config.json" in refused()


def test_one_run_at_a_time_and_a_full_disk_says_whether_it_can_be_resumed(tmp_path: Path):
    config = Told(str(tmp_path))
    with claim(config, False, "told.json", ()), pytest.raises(ValueError, match="in use"):  # noqa: SIM117
        with claim(config, False, "told.json", ()):
            pass
    with pytest.raises(OSError, match=r"No space left.*start again"), claim(config, False, "told.json", ()):
        raise OSError(errno.ENOSPC, "No space left on device")
    write_settings(tmp_path, config_json(config), "told.json")
    sealed(tmp_path / "checkpoints", 3)
    for raised in (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ):
        with pytest.raises(OSError, match=r"--resume: checkpoint-3 is good"), claim(config, True, "told.json", ()):
            raise raised
    with pytest.raises(RuntimeError, match="of another kind"), claim(config, True, "told.json", ()):
        raise RuntimeError("of another kind")
