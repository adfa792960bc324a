"""Where training data lies: files, folders, and data sets of the library `datasets`. Their rows come out as Python
values; what these mean is in `shapes`."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.core.extras import need
from depthdial.train.formats import ACCEPTED, SUFFIXES, Rows, name_of, rows_of, text_of

SAVED = ("state.json", "dataset_dict.json")
"""What a folder of `datasets` holds."""
NAME = re.compile(r"(?P<name>[^:#]+)(?::(?P<config>[^#]+))?(?:#(?P<split>.+))?")
HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Source(ABC):
    """One file or data set."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As messages and plug-ins show it."""

    @property
    @abstractmethod
    def stem(self) -> str:
        """The source of its rows, where these name none."""

    @abstractmethod
    def rows(self) -> Rows:
        """Its rows in order; a ValueError in the place of one that cannot be read. Raises ValueError, with the remedy,
        where nothing can be read at all."""

    @abstractmethod
    def sha256(self) -> str:
        """Hexadecimal, of the contents."""


@dataclass(frozen=True)
class File(Source):
    """A data file; what it is its first bytes say, or its name."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stem(self) -> str:
        return name_of(self.path).rpartition(".")[0] or self.path.name

    @property
    def plain(self) -> bool:
        """Is it text without rows?"""
        return name_of(self.path).lower().endswith(".txt")

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def text(self) -> str:
        """All of it. Raises ValueError where that is no text, or none at all."""
        return text_of(self.path)

    def rows(self) -> Rows:
        return rows_of(self.path)


@dataclass(frozen=True)
class Dataset(Source):
    """A data set of the library `datasets`: a folder that it wrote or can read, or one of the hub."""

    path: str
    config: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        return "".join([self.path, f":{self.config}" if self.config else "", f"#{self.split}" if self.split else ""])

    @property
    def name(self) -> str:
        return Path(str(self)).name if Path(self.path).exists() else str(self)

    @property
    def stem(self) -> str:
        return Path(self.path).name

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for _, row in self.rows():
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def rows(self) -> Rows:
        need("datasets", "data", f"the data set {self}")
        yield from ((f"row {i}", row) for i, row in enumerate(self._open(), 1))

    def _open(self) -> Any:
        import datasets

        folder = Path(self.path)
        saved = any((folder / name).is_file() for name in SAVED)
        split = None if saved else self.split  # a saved one has all splits, by name
        try:
            opened: Any = (
                datasets.load_from_disk(self.path)
                if saved
                else datasets.load_dataset(self.path, self.config, split=split)
            )
        except Exception as error:  # whatever a builder of somebody else's raises
            said = " ".join(str(error).split())[:300] or type(error).__name__
            where = "" if folder.exists() else ", no file or folder here, and as a data set of the hub"
            raise ValueError(f"{self}{where}: it cannot be opened ({said}); check the name") from None
        if not isinstance(opened, Mapping):
            return opened
        names = list(opened)
        wanted = self.split or ("train" if "train" in names or len(names) != 1 else names[0])
        if wanted not in names:
            raise ValueError(f"{self}: choose one of its splits, {', '.join(names)}, as {self.path}#{names[0]}")
        return opened[wanted]


def sources_of(data: str | Path | Sequence[str | Path]) -> list[Source]:
    """What is meant by names of files, folders (their data files, by name), and data sets: a folder that `datasets`
    wrote or a hub id, with :CONFIG and #SPLIT where it has several (the split is "train" where none is named).

    Raises ValueError for what is not there.
    """
    names = [data] if isinstance(data, str | Path) else data
    if not names:
        raise ValueError(f"no data files given; name at least one ({ACCEPTED}), a folder of them, or a data set")
    return [source for name in names for source in _meant(str(name))]


def _meant(name: str) -> list[Source]:
    path, parts = Path(name), NAME.fullmatch(name)
    if path.is_file():
        return [File(path)]
    if path.is_dir():
        inside = sorted(p for p in path.glob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file())
        saved = any((path / one).is_file() for one in SAVED)
        if inside and not saved:
            return [File(p) for p in inside]
        if not saved and not any(p.name.lower().endswith(SUFFIXES) for p in path.rglob("*")):
            raise ValueError(f"{path}: folder without data files; put {ACCEPTED} files in it or name a file")
        return [Dataset(name)]
    if parts is not None and (Path(parts["name"]).is_dir() or _on_hub(parts["name"])):
        return [Dataset(parts["name"], parts["config"], parts["split"])]
    raise ValueError(f"{path}: no such data file; check the path")


def _on_hub(name: str) -> bool:
    return HUB.fullmatch(name) is not None and not name.lower().endswith(SUFFIXES)
