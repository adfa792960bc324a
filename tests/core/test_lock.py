"""A folder has one writer, who is told at once that there is another; and what is not its own is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from depthdial.core.lock import LOCK_FILE, foreign, locked


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path: Path):
    folder = tmp_path / "deep" / "run"
    with locked(folder):
        (folder / "work").write_text("")
        with pytest.raises(ValueError, match=r"run is in use.*--output"), locked(folder):
            pass
        with pytest.raises(ValueError, match="in use"), locked(folder):  # who was refused took nothing with it
            pass
    with locked(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["work"]


def test_a_killed_process_holds_nothing(tmp_path: Path):
    code = (
        "import os, sys; from pathlib import Path; from depthdial.core.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="in use"), locked(tmp_path):
        pass
    other.kill()
    other.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path):
        pass


def test_a_run_that_failed_leaves_no_empty_folder(tmp_path: Path):
    with pytest.raises(RuntimeError), locked(tmp_path / "new"):
        raise RuntimeError
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(RuntimeError), locked(there):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["there"], "but keeps one that was there"


def test_what_is_foreign(tmp_path: Path):
    for name in ("rows", "config.json", ".git"):
        (tmp_path / name).mkdir()
    assert foreign(tmp_path, ("rows",)) == ["config.json"] and foreign(tmp_path / "nowhere", ()) == []
