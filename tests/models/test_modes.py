"""What is written can be read by whoever the umask lets read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from depthdial.models import load
from depthdial.models.checkpoint import save
from depthdial.models.export import export
from depthdial.models.modes import readable, umask


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _modes(folder: Path) -> set[int]:
    return {place.stat().st_mode & 0o777 for place in folder.rglob("*") if place.is_file()}


def test_the_umask_is_read_and_left_as_it_is(mask: int) -> None:
    assert umask() == mask
    assert os.umask(mask) == mask


def test_a_plugin_and_an_export_follow_the_umask(
    mask: int, tiny_folder: Path, tiny_plugin: Path, tmp_path: Path
) -> None:
    model, tokenizer = load(str(tiny_folder), str(tiny_plugin), dtype="float32", device="cpu")
    for folder in (save(model, tmp_path / "plugin"), export(model, tokenizer, tmp_path / "export")):
        assert _modes(folder) == {0o666 & ~mask}
        assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    save(model, tmp_path / "plugin")  # over the older one
    assert _modes(tmp_path / "plugin") == {0o666 & ~mask}


def test_a_folder_of_hugging_face_becomes_readable(
    mask: int,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    readable(tmp_path / "model")
    assert _modes(tmp_path / "model") == {0o666 & ~mask}
