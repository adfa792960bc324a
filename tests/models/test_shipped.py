"""Is a plug-in shipped? That is answered by the configuration alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from depthdial import load
from depthdial.models import base
from depthdial.models.converted import converted_of
from depthdial.models.shipped import shipped


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHDIAL_CACHE", str(tmp_path / "cache"))


def test_nothing_is_fetched_for_a_short_name_without_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "weights", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ValueError, match="no plug-in is shipped for 'gemma3-270m'"):
        load("gemma3-270m")


def test_no_weights_are_read_for_a_folder_without_one(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no plug-in is shipped"):
        load(str(folder))


def test_the_base_alone_needs_none(tiny_folder: Path) -> None:
    model, _ = load(str(tiny_folder), budget=1.0, dtype="float32", device="cpu")
    assert converted_of(model).plugin is None and model.config.model_type == "llama"
    with pytest.raises(ValueError, match="no plug-in is shipped"):
        load(str(tiny_folder), budget=0.9)


def test_something_is_shipped() -> None:
    assert shipped()
