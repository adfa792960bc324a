"""Document documents to fixed-length rows, and such rows kept on disk. What a document is, is decided in `encode`.

A row holds several documents side by side. Positions restart at 0 at each, and from that alone Hugging Face models
build a block-diagonal causal mask, given `attention_mask=None` and `use_cache=False`: no document sees another.
"""

import hashlib
import json
import logging
import random
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from depthdial.core.whole import whole
from depthdial.train.data import Record, digest
from depthdial.train.encode import Document, Targets, encode_all, separator_token
from depthdial.train.roles import read_in_full

IGNORED = -100  # the label that Hugging Face losses leave out
FORMAT = 2  # of the cache: raise it when the same options give other rows
SHOWN_FROM = 5000  # records; fewer are tokenised before a progress bar could be read

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackStats:
    """documents: given; dropped: pieces without any target; rows, tokens (padding not counted), targets: what the rows
    hold; fill: tokens / (rows * length).
    """

    documents: int
    dropped: int
    rows: int
    tokens: int
    targets: int
    fill: float


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Rows as dicts of LongTensors [length]: `input_ids`, `position_ids`, `labels` (not shifted, -100: not to learn).

    input_ids, position_ids: unsigned or signed integers [rows, length]; target: bool [rows, length].
    """

    def __init__(self, input_ids: np.ndarray, target: np.ndarray, position_ids: np.ndarray, stats: PackStats):
        self.input_ids, self.target, self.position_ids, self.stats = input_ids, target, position_ids, stats

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.input_ids[index].astype(np.int64))
        return {
            "input_ids": ids,
            "labels": ids.where(torch.from_numpy(self.target[index]), IGNORED),
            "position_ids": torch.from_numpy(self.position_ids[index].astype(np.int64)),
        }

    def save(self, path: Path) -> None:
        """Write one .npz, whole or not at all."""
        with whole(path) as part, part.open("wb") as file:
            np.savez(
                file,
                input_ids=self.input_ids,
                target=self.target,
                position_ids=self.position_ids,
                stats=np.array(json.dumps(asdict(self.stats))),
            )

    @classmethod
    def load(cls, path: Path) -> "PackedDataset":
        with path.open("rb") as file, np.load(file) as arrays:
            stats = PackStats(**json.loads(str(arrays["stats"])))
            return cls(arrays["input_ids"], arrays["target"], arrays["position_ids"], stats)


def pack(encoded: Iterable[Document], length: int, seed: int = 0, pad: int = 0) -> PackedDataset:
    """Pack documents into rows of `length` tokens, in an order shuffled by `seed`.

    A document longer than `length` is cut; each piece counts as a document of its own. A piece goes into the fullest
    row that has room for it, whole. The first token of a piece is no target: the token before it belongs to another
    document. Pieces left without target are dropped. The end of a row that nothing fits is filled with `pad`, as a
    document of its own without targets.
    Raises ValueError for a length below 2 or when there is nothing to learn.
    """
    if length < 2:
        raise ValueError(f"row length is {length}; give at least 2 tokens")
    documents = list(encoded)
    every = [
        (d, at, min(length, len(d.input_ids) - at)) for d in documents for at in range(0, len(d.input_ids), length)
    ]
    pieces = [(d, at, n) for d, at, n in every if d.target[at + 1 : at + n].any()]
    if not pieces:
        raise ValueError("no token to learn in any record; give conversations with answers, or plain text")
    order = random.Random(seed)
    order.shuffle(pieces)
    rows = _assign([n for _, _, n in pieces], length)
    order.shuffle(rows)

    largest = max(pad, max(int(d.input_ids.max()) for d, _, _ in pieces))
    ids = np.full((len(rows), length), pad, np.uint16 if largest < 2**16 else np.int32)
    target = np.zeros((len(rows), length), bool)
    positions = np.zeros((len(rows), length), np.uint16 if length <= 2**16 else np.int32)
    for row, members in enumerate(rows):
        start = 0
        for document, at, n in (pieces[i] for i in members):
            here, there = slice(start, start + n), slice(at, at + n)
            ids[row, here], target[row, here] = document.input_ids[there], document.target[there]
            positions[row, here] = np.arange(n)
            target[row, start] = False
            start += n
        positions[row, start:] = np.arange(length - start)
    tokens = sum(n for _, _, n in pieces)
    stats = PackStats(
        len(documents), len(every) - len(pieces), len(rows), tokens, int(target.sum()), tokens / (len(rows) * length)
    )
    return PackedDataset(ids, target, positions, stats)


def prepare(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    seed: int = 0,
    separator: int | None = None,
    targets: Targets = "assistant",
    cache_dir: str | Path | None = None,
    vocabulary: int | None = None,
    full: bool = False,
    strict: bool = True,
) -> PackedDataset:
    """Tokenise and pack `records` (see `encode_all`, `pack`); with `cache_dir`, keep the rows there for the next time.

    full: rows whose prompts are read in full (`roles.read_in_full`); targets must be "assistant" then. strict: as in
    `encode_all`.
    The cache's key is a hash of the records' contents, every option, the tokenizer and its template. A file there that
    cannot be read or written is a warning in the log, no error. Raises ValueError as those two do.
    """
    end = separator_token(tokenizer) if separator is None else separator
    pad = end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    if vocabulary is not None and pad >= vocabulary:  # an added one, which the model has no embedding for
        pad = end
    options = [FORMAT, length, seed, end, targets, pad, vocabulary, full]
    path = Path(cache_dir) / f"{_key(records, tokenizer, options)}.npz" if cache_dir is not None else None
    if path is not None and path.exists():
        try:
            return PackedDataset.load(path)
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile):
            log.warning("%s: unreadable cache file; made again", path)
    encoded = encode_all(
        _with_bar(records), tokenizer, separator=end, targets=targets, vocabulary=vocabulary, strict=strict
    )
    dataset = pack(read_in_full(encoded, seed) if full else encoded, length, seed, pad)
    if path is not None:
        try:
            dataset.save(path)
        except OSError as error:  # the rows are in memory: a full disk need not stop a training run here
            log.warning("%s: rows not cached (%s)", path, error.strerror)
    return dataset


def _assign(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Rows as lists of piece numbers, each piece put in the fullest row with room for it."""
    rows: list[list[int]] = []
    with_free: dict[int, list[int]] = {}
    sizes_free = 0  # bit n is set: some row has exactly n tokens free
    for piece, size in enumerate(sizes):
        room, row = length, len(rows)
        if fitting := sizes_free >> size:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_free[room].pop()
            if not with_free[room]:
                sizes_free ^= 1 << room
        else:
            rows.append([])
        rows[row].append(piece)
        if free := room - size:
            with_free.setdefault(free, []).append(row)
            sizes_free |= 1 << free
    return rows


def _key(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, options: Sequence[object]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in _identity(records, tokenizer, options):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _identity(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, options: Sequence[object]
) -> Iterator[str]:
    yield json.dumps(options)
    yield tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    yield json.dumps([tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token])
    yield digest(records)


def _with_bar(records: Sequence[Record]) -> Iterable[Record]:
    console = Console(stderr=True)
    quiet = not console.is_terminal or len(records) < SHOWN_FROM
    return track(records, "Tokenising", console=console, transient=True, disable=quiet)
