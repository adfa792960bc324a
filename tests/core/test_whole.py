"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from depthdial.core.whole import disk_errors, leftovers, whole, write_json, write_new, write_text


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "told.json"
    write_json(path, {1: (math.nan, 2.0), "a": [math.inf, None]})
    assert json.loads(path.read_text()) == {"1": [None, 2.0], "a": [None, None]}
    write_text(path, "übrig")
    assert path.read_bytes() == "übrig".encode()
    assert list(path.parent.iterdir()) == [path]


def half_written(path: Path) -> None:
    with whole(path) as part:
        part.write_text("half")
        raise OSError("disk full")


def test_what_was_there_survives_a_failure(tmp_path):
    path = tmp_path / "kept.txt"
    write_text(path, "before")
    with pytest.raises(OSError, match="disk full"):
        half_written(path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "both.txt"
    with whole(path) as first, whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_writers_see_the_ending_and_files_have_the_usual_rights(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    path = tmp_path / "picture.png"
    with whole(path) as part:
        assert part.suffix == ".png"
        part.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


def test_what_killed_processes_left_is_told_with_the_path_it_was_for(tmp_path):
    kept = [tmp_path / name for name in ("a.json", "b", ".hidden", ".c.part", "d-0123abcd.part.json")]
    for path in kept:
        path.write_text("x")
    half = {}
    for name in ("part-00002.parquet", "no ending", "two.dots.json"):
        with pytest.raises(InterruptedError), whole(tmp_path / name) as part:
            raise InterruptedError
        part.write_text("half")  # as it stays where nobody tidies up
        half[part] = tmp_path / name
    assert dict(leftovers(tmp_path)) == half


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask_whatever_their_writer_does(tmp_path, umask):
    before = os.umask(umask)
    try:
        with whole(tmp_path / "a.safetensors") as part:
            save_file({"a": torch.zeros(2)}, part)  # for its user alone
        write_text(tmp_path / "b.txt", "b")
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 2 and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~umask}


@pytest.mark.parametrize("links", [True, False])
def test_of_several_writers_of_a_new_file_one_is_the_first(tmp_path, monkeypatch, links: bool):
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", none)
    path = tmp_path / "deep" / "claim.json"
    assert write_new(path, "first") and not write_new(path, "second")
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_real_full_disk_is_one_line_that_says_what_to_do():
    with pytest.raises(OSError, match=r"^No space left on device; clear it$"), disk_errors(lambda: "clear it"):
        Path("/dev/full").write_text("x" * 100)
    with pytest.raises(FileNotFoundError, match="nowhere"), disk_errors(lambda: "clear it"):
        Path("nowhere").read_text()
