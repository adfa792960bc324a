"""Text files to tokens on disk, file by file, so that no more than one of them is ever in memory.

A folder of shards holds, for each data file, its training and its held-out tokens as plain little-endian numbers, and
index.json: the tokenizer's fingerprint, counts, and which files are done. Shards are written whole or not at all, so an
interrupted run goes on with the next file; runs that share a folder wait for each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from depthdial.core.lock import foreign
from depthdial.core.whole import whole, write_json
from depthdial.train.data import Record, holdout, read
from depthdial.train.encode import encode_all, separator_token
from depthdial.train.files import Source, sources_of
from depthdial.train.progress import Progress
from depthdial.train.tokenizer import (
    open_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)

VERSION = 1
INDEX_FILE, TOKENIZER_FOLDER = "index.json", "tokenizer"
Side = Literal["train", "heldout"]


@dataclass(frozen=True)
class Shard:
    """What one data file became. sha256: of the file's bytes; train, heldout: tokens."""

    name: str
    sha256: str
    documents: int
    train: int
    heldout: int


@dataclass(frozen=True)
class Index:
    """index.json: everything that decides which tokens a folder of shards holds."""

    tokenizer: str
    """Fingerprint of the tokenizer, which is kept beside the index."""
    asked: str
    """What was asked for: "train:4096", or the tokenizer's name."""
    vocabulary: int
    separator: int
    """The token after each document."""
    heldout: float
    """Share of the documents that is held out, by a hash of their text: the same for every seed."""
    shards: tuple[Shard, ...] = ()
    files: tuple[str, ...] = field(default=())
    """sha256 of all data files, done or not."""
    version: int = VERSION

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if self.vocabulary <= 2**16 else "<u4")

    def tokens(self, side: Side) -> int:
        return sum(shard.train if side == "train" else shard.heldout for shard in self.shards)


def shard_path(folder: Path, number: int, side: Side) -> Path:
    return folder / f"{number:05}.{side}.bin"


def make_shards(
    files: Sequence[str | Path], folder: Path, tokenizer: str = "", heldout: float = 0.01, strict: bool = False
) -> tuple[Index, PreTrainedTokenizerBase]:
    """The shards of data files in `folder`, made or completed, and their tokenizer.

    tokenizer: "train:SIZE", or the name of one that exists; "" takes that of the folder, or trains one of 4096.
    strict: as in `data.read`. Raises ValueError for unreadable data, and for a folder made with another tokenizer, of
    other files or with another held-out share.
    """
    paths = sources_of(files)
    sums = tuple(path.sha256() for path in paths)
    if read_index(folder) is None and (strange := foreign(folder, (TOKENIZER_FOLDER,))):
        raise ValueError(f"{folder} holds {strange[0]} and no shards; choose an empty or new folder for --shards")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        index, opened = _begin(paths, sums, folder, tokenizer, heldout, strict)
        total = len(paths)
        with Progress("tokenising", total, len(index.shards)) as progress:
            for number in range(len(index.shards), total):
                shard = _write(paths[number], sums[number], number, folder, index, opened, strict)
                index = Index(**{**vars(index), "shards": (*index.shards, shard)})
                _save(index, folder)
                progress.advance(shard.train + shard.heldout, tokens=float(index.tokens("train")))
    return index, opened


def read_index(folder: Path) -> Index | None:
    """The index of a folder of shards, None if it has none. Raises ValueError for one that cannot be read."""
    file = folder / INDEX_FILE
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text())
        if data["version"] != VERSION:
            raise ValueError(f"{file} has version {data['version']}, not {VERSION}; choose another --shards folder")
        shards = tuple(Shard(**shard) for shard in data.pop("shards"))
        return Index(**{**data, "files": tuple(data["files"])}, shards=shards)
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{file} is not an index of shards; choose another folder for --shards") from None


def _begin(
    paths: Sequence[Source], sums: tuple[str, ...], folder: Path, name: str, heldout: float, strict: bool
) -> tuple[Index, PreTrainedTokenizerBase]:
    """The folder's own index, if it is of these files and this tokenizer; a new one for an empty folder."""
    index = read_index(folder)
    if index is None:
        return _fresh(paths, sums, folder, name or "train:4096", heldout, strict)
    tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER_FOLDER, local_files_only=True)
    remedy = "give the same one, or another --shards folder"
    is_new = vocabulary_size(name) is not None
    same = (
        name in ("", index.asked)
        if is_new or not name
        else tokenizer_fingerprint(open_tokenizer(name)) == index.tokenizer
    )
    if not same or tokenizer_fingerprint(tokenizer) != index.tokenizer:
        raise ValueError(f"the shards in {folder} were made with another tokenizer ({index.asked}); {remedy}")
    if index.files != sums:
        raise ValueError(
            f"the shards in {folder} were made of other data files; give the same ones, or another --shards"
        )
    if index.heldout != heldout:
        raise ValueError(f"the shards in {folder} hold out {index.heldout} of the documents, not {heldout}; {remedy}")
    return index, tokenizer


def _fresh(
    paths: Sequence[Source], sums: tuple[str, ...], folder: Path, name: str, heldout: float, strict: bool
) -> tuple[Index, PreTrainedTokenizerBase]:
    size = vocabulary_size(name)
    if size is None:
        tokenizer = open_tokenizer(name)
    else:  # held-out text must not shape the tokenizer either
        tokenizer = train_tokenizer((r for path in paths for r in holdout(read(path, strict=strict), heldout)[0]), size)
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    index = Index(
        tokenizer_fingerprint(tokenizer), name, len(tokenizer), separator_token(tokenizer), heldout, files=sums
    )
    _save(index, folder)
    return index, tokenizer


def _write(
    path: Source, sha256: str, number: int, folder: Path, index: Index, tokenizer: PreTrainedTokenizerBase, strict: bool
) -> Shard:
    """One data file's tokens. The separator ends a document, also where its text goes on on the other side."""
    records = read(path, strict=strict)
    out: dict[Side, Path] = {side: shard_path(folder, number, side) for side in ("train", "heldout")}
    counts: dict[Side, int] = {"train": 0, "heldout": 0}
    with (
        whole(out["train"]) as ours,
        whole(out["heldout"]) as theirs,
        ours.open("wb") as train,
        theirs.open("wb") as heldout,  # closed before they take their places
    ):
        writers: dict[Side, BinaryIO] = {"train": train, "heldout": heldout}
        last: Side = "train"
        open_end = False
        for side, ids, ends in _encode(records, index, tokenizer, strict):
            if open_end and side != last:
                counts[last] += _append(writers[last], np.array([index.separator]), index)
            counts[side] += _append(writers[side], ids, index)
            last, open_end = side, not ends
    return Shard(path.name, sha256, len(records), counts["train"], counts["heldout"])


def _encode(
    records: list[Record], index: Index, tokenizer: PreTrainedTokenizerBase, strict: bool
) -> Iterator[tuple[Side, np.ndarray, bool]]:
    heldout = {id(record) for record in holdout(records, index.heldout)[1]}
    documents = encode_all(
        records, tokenizer, separator=index.separator, targets="all", vocabulary=index.vocabulary, strict=strict
    )  # the files have no room for a larger number
    for record, document in zip(records, documents, strict=True):
        ends = record.ends or bool(record.messages)
        ids = document.input_ids
        if not len(ids):
            continue  # left out
        if record.messages and ids[-1] != index.separator:  # a chat template ends turns, not documents
            ids = np.append(ids, index.separator)
        yield "heldout" if id(record) in heldout else "train", ids, ends


def _append(file: BinaryIO, ids: np.ndarray, index: Index) -> int:
    file.write(ids.astype(index.dtype).tobytes())
    return len(ids)


def _save(index: Index, folder: Path) -> None:
    write_json(folder / INDEX_FILE, asdict(index))
