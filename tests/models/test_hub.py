"""Plug-ins and the hub: one is pushed alone, and loaded by its name; a real client against a server on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tests.models.fake_hub import Hub, fake_hub
from typer.testing import CliRunner

import depthdial
from depthdial.cli.app import app
from depthdial.models.hub import plugin_folder, push


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that huggingface_hub knows, as HF_ENDPOINT and HF_HUB_CACHE would say before it is imported."""
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        yield hub


def opened(folder: Path, plugin: str) -> Any:
    return depthdial.load(str(folder), plugin, 0.7, "float32", "cpu")[0]


def test_a_plugin_is_pushed_alone_and_loaded_by_its_name(
    hub: Hub, tiny_plugin: Path, tiny_folder: Path, tmp_path: Path
):
    folder = tmp_path / "mine"
    shutil.copytree(tiny_plugin, folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state.bin").write_text("of the run")
    (folder / "train.json").write_text("{}")
    assert depthdial.push(folder, "me/mine") == f"{hub.url}/me/mine"
    assert set(hub.files["me/mine"]) == {"method.json", "parts.safetensors", "README.md"} and hub.private["me/mine"]
    assert hub.files["me/mine"]["parts.safetensors"] == (folder / "parts.safetensors").read_bytes()
    card = hub.files["me/mine"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: depthdial") and "--plugin me/mine" in card
    assert "| +2.00 | 0.950 |" in card
    model = opened(tiny_folder, "me/mine")
    assert model.converted.plugin.name == "tiny" and model.converted.settings.offset == -2.0
    hub.requests.clear()
    assert opened(tiny_folder, "me/mine@main").converted.settings.offset == -2.0
    assert hub.requests and not any(request.startswith("GET me/mine/resolve") for request in hub.requests), "kept"


def test_the_verb_pushes_too(hub: Hub, tiny_plugin: Path, tmp_path: Path):
    shutil.copytree(tiny_plugin, tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("My own words.")
    done = CliRunner().invoke(app, ["push", str(tmp_path / "mine"), "me/mine"], catch_exceptions=False)
    assert done.stdout == f"{hub.url}/me/mine\n" and hub.files["me/mine"]["README.md"] == b"My own words."


def test_what_the_hub_does_not_have_is_one_line(hub: Hub, tiny_folder: Path):
    with pytest.raises(
        ValueError, match=r"me/no is no folder here, and the hub gives no such plug-in: 404.*check the n"
    ):
        opened(tiny_folder, "me/no")


def test_without_the_network_it_is_said(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        ValueError, match=r"me/no is no folder here, .*: it cannot be reached \(or HF_HUB_OFFLINE is set"
    ):
        opened(tiny_folder, "me/no")
    with pytest.raises(ValueError, match="no is not a plug-in"):
        opened(tiny_folder, "no")


def test_a_folder_that_is_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "me" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert plugin_folder("me/mine") == Path("me/mine")
    assert plugin_folder("gone") == Path("gone"), "no name of the hub: whoever reads it says what is missing"


def test_what_is_broken_does_not_go_out(hub: Hub, tiny_plugin: Path, tmp_path: Path):
    folder = tmp_path / "mine"
    shutil.copytree(tiny_plugin, folder)
    (folder / "parts.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is corrupt"):
        push(folder, "me/mine")
    (folder / "method.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="format_version is missing"):
        push(folder, "me/mine")
    with pytest.raises(ValueError, match="holds no plug-in and no model"):
        push(tmp_path, "me/mine")
    assert not hub.requests
