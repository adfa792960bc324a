"""GGUF files in parts, in another byte order, and damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from depthdial.models.base import load_base
from depthdial.models.gguf_file import read_gguf

Write = Callable[..., Path]


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return load_base(str(path), dtype="float32", device="cpu")[0].state_dict()


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _split(whole: Path, names: list[str]) -> None:
    """The file as two: all keys and one half of the tensors, the other half with the keys of a part only."""
    contents = read_gguf([whole])
    tensors = list(contents.tensors)
    data = whole.read_bytes()
    keys_end = data.index(_text(tensors[0]))
    count = struct.unpack_from("<Q", data, 16)[0]
    for number, (name, chosen) in enumerate(zip(names, (tensors[:9], tensors[9:]), strict=True)):
        keys = data[24:keys_end] if number == 0 else b""
        for key, value in (("split.no", number), ("split.count", 2), ("split.tensors.count", len(tensors))):
            keys += _text(key) + struct.pack("<II", 4, value)  # 4: a uint32
        table, body = b"", b""
        for tensor in chosen:
            stored = contents.tensors[tensor]
            shape = stored.shape[::-1]
            table += _text(tensor) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            table += struct.pack("<IQ", stored.kind, len(body))
            body += data[stored.offset : stored.offset + stored.size].ljust(-(-stored.size // 32) * 32, b"\0")
        head = b"GGUF" + struct.pack("<IQQ", 3, len(chosen), (count if number == 0 else 0) + 3) + keys + table
        whole.with_name(name).write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + body)


def test_parts_are_read_as_one_from_any_of_them(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    whole = write("plain.gguf")
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    _split(whole, names)
    expected = _weights(whole)
    for name in names:
        found = _weights(whole.with_name(name))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert capfd.readouterr().err.count("de-quantising") == 2  # the whole one, and the parts once
    whole.with_name(names[1]).unlink()
    with pytest.raises(ValueError, match=r"one of 2 parts, and m-00002-of-00002\.gguf is not beside it"):
        _weights(whole.with_name(names[0]))
    renamed = whole.with_name(names[0]).rename(whole.with_name("model.gguf"))
    with pytest.raises(ValueError, match="one of 2 parts; give the parts their names back"):
        _weights(renamed)


def test_another_byte_order_is_called_that(write: Write) -> None:
    whole = (path := write()).read_bytes()
    path.write_bytes(whole[:4] + struct.pack(">I", 3) + whole[8:])
    with pytest.raises(ValueError, match="big-endian"):
        _weights(path)


@pytest.mark.parametrize(("place", "what"), [(8, "tensors"), (16, "keys")])
@pytest.mark.parametrize("count", [2**60, 2**64 - 1])
def test_an_absurd_count_is_called_damage(write: Write, place: int, what: str, count: int) -> None:
    whole = (path := write()).read_bytes()
    path.write_bytes(whole[:place] + struct.pack("<Q", count) + whole[place + 8 :])
    with pytest.raises(ValueError, match=f"damaged: it says {count} {what}"):
        _weights(path)


def test_damage_anywhere_in_the_header_ends_in_one_line(write: Write) -> None:
    """150 headers with one to eight bytes changed: read, or a ValueError of one line, fast."""
    whole = (path := write()).read_bytes()
    end = whole.index(b"output_norm.weight")
    draw = np.random.default_rng(0)
    said = []
    for _ in range(150):
        data = bytearray(whole)
        for place in draw.integers(0, end, draw.integers(1, 9)):
            data[place] = draw.integers(0, 256)
        path.write_bytes(data)
        try:
            _weights(path)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 50
    assert [text for text in said if not text.isprintable()] == []
