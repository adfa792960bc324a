"""What stands in a GGUF file: its metadata and where its tensors lie, over all parts of one that is split.

Every length is checked against the file before it is followed, so that a damaged file is called damaged.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quant_shape_to_byte_shape
from torch import Tensor

from depthdial.models.foreign import shown

VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, where the file does not say
MOST_DIMENSIONS = 8
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class Damaged(ValueError):
    """The file is not whole, or is no GGUF file of a kind that can be read."""


class Unsupported(ValueError):
    """The file is whole and asks for something that is not computed here."""


class Stored(NamedTuple):
    """Where a tensor lies and how it is stored; its shape in torch's order."""

    file: Path
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    """Bytes from the start of the file."""
    size: int
    """Bytes."""

    def read(self) -> Tensor:
        """De-quantised, fp32. Raises Unsupported for blocks that the package gguf cannot read."""
        raw = np.memmap(self.file, np.uint8, "r", self.offset, self.size)
        rows = raw.reshape(quant_shape_to_byte_shape(self.shape, self.kind))
        try:
            weights = np.require(dequantize(rows, self.kind), np.float32, "W")  # copies what still lies in the file
        except NotImplementedError as error:
            raise Unsupported(f"blocks of type {self.kind.name} cannot be de-quantised") from error
        return torch.from_numpy(weights).reshape(self.shape)


class Contents(NamedTuple):
    """The metadata, and the tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Stored]


def parts_of_gguf(path: Path) -> list[Path]:
    """The files of the model that `path` is, or is one part of, in order. Raises Unsupported where one is missing."""
    count = _contents(path).metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return [path]
    named = _PART.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise Unsupported(
            f"it is one of {count} parts; give the parts their names back (NAME-00001-of-{count:05}.gguf)"
        )
    files = [path.with_name(f"{named['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise Unsupported(f"it is one of {count} parts, and {', '.join(missing)} is not beside it")
    return files


def read_gguf(files: list[Path]) -> Contents:
    """Everything but the weights of a model's files. Raises Damaged."""
    metadata, tensors = {}, {}
    for number, file in enumerate(files):
        its, stored = _contents(file)
        if len(files) > 1 and its.get("split.no") != number:
            raise Damaged(f"{file.name} says that it is part {its.get('split.no')}, counted from 0, not {number}")
        if twice := tensors.keys() & stored.keys():
            raise Damaged(f"tensor {shown(min(twice))} stands in two parts")
        metadata, tensors = {**its, **metadata}, {**tensors, **stored}
    wanted = metadata.get("split.tensors.count")
    if len(files) > 1 and isinstance(wanted, int) and wanted != len(tensors):
        raise Damaged(f"its parts hold {len(tensors)} tensors, and it says {wanted}")
    return Contents(metadata, tensors)


def _contents(path: Path) -> Contents:
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise Damaged("it is empty") from error
        with data:
            return _parsed(_Cursor(data), path)


class _Cursor:
    """Reads on through a file and never past its end."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place, self.end = data, 0, len(data)

    def take(self, size: int) -> bytes:
        if size > self.end - self.place:
            raise Damaged("it ends too early: cut off, or its header is damaged")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise Damaged("a text in its header is not UTF-8") from error

    def count(self, what: str, least: int) -> int:
        """A count of things of at least so many bytes each."""
        found = self.number("Q")
        if found * least > self.end - self.place:
            raise Damaged(f"its header is damaged: it says {found} {what}, more than the file can hold")
        return found

    def value(self, kind: int) -> Any:
        if kind in _FORMATS:
            return self.number(_FORMATS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise Damaged(f"its header is damaged: there is no value of type {kind}")
        of = self.number("I")
        if of == _STRING:
            return [self.text() for _ in range(self.count("texts", 8))]
        if of not in _FORMATS:
            raise Damaged(f"its header is damaged: there is no list of type {of}")
        size = struct.calcsize("<" + _FORMATS[of])
        many = self.count("numbers", size)
        return list(struct.unpack(f"<{many}{_FORMATS[of]}", self.take(many * size)))


def _parsed(cursor: _Cursor, path: Path) -> Contents:
    if cursor.take(4) != b"GGUF":
        raise Damaged("it does not begin with GGUF")
    version = cursor.number("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise Unsupported("it is big-endian; export it again in little-endian order")
        raise Unsupported(f"it is of GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
    many_tensors, many_keys = cursor.count("tensors", 24), cursor.count("keys", 13)
    metadata = {}
    for _ in range(many_keys):
        key = cursor.text()
        if key in metadata:
            raise Damaged(f"key {shown(key)} stands in it twice")
        metadata[key] = cursor.value(cursor.number("I"))
    table = list(_table(cursor, many_tensors))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise Damaged(f"general.alignment is {alignment!r}")
    start = -(-cursor.place // alignment) * alignment
    tensors: dict[str, Stored] = {}
    for name, shape, raw, offset in table:
        if name in tensors:
            raise Damaged(f"tensor {shown(name)} stands in it twice")
        try:
            kind = GGMLQuantizationType(raw)
            block, size = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise Unsupported(f"tensor {shown(name)} is of type {raw}, which the package gguf does not know") from error
        if not shape or math.prod(shape) < 1 or shape[-1] % block:
            raise Damaged(f"tensor {shown(name)} cannot have the shape {list(shape)}")
        bytes_of = math.prod(shape) // block * size
        if start + offset + bytes_of > cursor.end:
            raise Damaged(f"it ends before its tensor {shown(name)}: cut off")
        tensors[name] = Stored(path, shape, kind, start + offset, bytes_of)
    return Contents(metadata, tensors)


def _table(cursor: _Cursor, many: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    for _ in range(many):
        name, dimensions = cursor.text(), cursor.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise Damaged(f"its header is damaged: tensor {shown(name)} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        yield name, shape[::-1], cursor.number("I"), cursor.number("Q")
